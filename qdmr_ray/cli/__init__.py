"""The bodies of ``qdmr`` commands that stand alone; ``qdmr_ray.cli.main`` registers them."""
