"""The files of a packed dataset, and how they are read."""
