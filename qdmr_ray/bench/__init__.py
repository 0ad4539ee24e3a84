"""Measures how fast this installation is (``qdmr bench``)."""
