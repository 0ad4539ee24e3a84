"""Image quality metrics, one file each."""
