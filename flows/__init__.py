"""Jobs that run on a schedule: one a file, thin, fit to be copied."""
