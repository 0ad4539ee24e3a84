"""Reads and writes image files together with their metadata."""
