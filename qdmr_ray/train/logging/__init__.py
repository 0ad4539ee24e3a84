"""Everything that is written or shown while a stage trains."""
