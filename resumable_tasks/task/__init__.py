"""The entry point of the library: `resumable_task`, its options, and one run."""
