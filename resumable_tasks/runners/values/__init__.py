"""What handlers return → columns: every value as it was, or its row is set apart."""
