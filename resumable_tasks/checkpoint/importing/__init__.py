"""Progress kept by hand, taken over into a checkpoint."""
