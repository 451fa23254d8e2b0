"""A checkpoint in a directory: journal and shards."""
