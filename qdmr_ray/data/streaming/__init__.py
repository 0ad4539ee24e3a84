"""Turns shards into training batches, through Ray Data."""
