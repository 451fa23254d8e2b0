"""Items → keyed → missing → batches."""
