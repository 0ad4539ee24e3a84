"""Shards to training batches, through Ray Data."""
