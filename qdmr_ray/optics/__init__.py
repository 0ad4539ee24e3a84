"""A lens, its point spread functions, and the photographs that it takes."""
