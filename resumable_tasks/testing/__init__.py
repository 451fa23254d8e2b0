"""Test tools that the library shares with anyone who tests a job, a store or a runner."""
