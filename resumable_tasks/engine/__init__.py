"""The only loop: batches out, outcomes in, one committer."""
