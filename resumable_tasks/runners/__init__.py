"""Runners execute batches. They know handlers and batches, but not checkpoints."""
