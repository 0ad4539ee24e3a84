"""Folders of photographs -> packed shards -> endless streams of crops (Ray Data)."""
