"""Checks that networks, training steps and metrics agree with golden values."""
