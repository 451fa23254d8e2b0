"""The report of a checkpoint: facts read from it, shown as one page of HTML without any script."""
