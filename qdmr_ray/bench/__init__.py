"""How fast this installation is: ``qdmr bench``."""
