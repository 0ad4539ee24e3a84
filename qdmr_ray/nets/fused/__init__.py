"""GPU kernels that do the networks' elementwise work in fewer passes."""
