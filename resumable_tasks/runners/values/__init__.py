"""Results of handlers → columns. Each value is stored unchanged, or its row is set apart."""
