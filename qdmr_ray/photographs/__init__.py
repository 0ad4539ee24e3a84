"""Reading and writing image files with all that belongs to them."""
