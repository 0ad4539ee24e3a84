"""How the source and the target domain use the codebook."""
