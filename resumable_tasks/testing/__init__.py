"""Test tools for everyone who tests a job, a store, a runner or a form of checkpoint."""
