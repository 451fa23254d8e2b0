"""Checkpoints in buckets under attack."""
