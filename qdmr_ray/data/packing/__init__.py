"""Packs image folders into shards and their manifest."""
