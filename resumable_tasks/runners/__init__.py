"""How batches are executed. A runner knows handlers and batches, and nothing of checkpoints."""
