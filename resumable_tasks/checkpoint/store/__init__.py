"""Where the bytes of a checkpoint live. A store knows names and bytes, and nothing of jobs."""
