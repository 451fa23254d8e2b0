"""The committed rows, for others: tables, datasets, published folders."""
