"""Agreement of networks, training steps and metrics with golden figures."""
