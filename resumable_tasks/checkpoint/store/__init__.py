"""Stores: the bytes of a checkpoint. A store knows names and bytes, and nothing of jobs."""
