"""GPU kernels that do the networks' elementwise work, and the attention's, in fewer passes."""
