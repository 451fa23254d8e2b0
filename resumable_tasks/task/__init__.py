"""The door: `resumable_task`, its options, one run."""
