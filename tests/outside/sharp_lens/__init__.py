"""A user's package: a network and a stage that qdmr_ray knows nothing of."""
