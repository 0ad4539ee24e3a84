"""Measures and draws how the source and the target domain use the codebook."""
