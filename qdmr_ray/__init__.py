"""QDMR on Ray: real-world aberration correction, from photographs to a trained restorer."""

__version__ = "0.1.0"
