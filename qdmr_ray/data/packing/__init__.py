"""Image folders to shards and their manifest."""
