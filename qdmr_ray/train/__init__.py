"""Training on Ray: the loop inside the workers, and the driver that runs stage after stage."""
