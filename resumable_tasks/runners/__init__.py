"""Runners execute batches. They know handlers and batches, and nothing of checkpoints."""
