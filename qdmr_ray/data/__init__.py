"""Turns folders of photographs into packed shards, and shards into endless streams of crops."""
