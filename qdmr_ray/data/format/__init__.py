"""What a packed dataset holds on disk, and how it is read."""
