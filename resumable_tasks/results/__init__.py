"""Output of the committed rows: tables, datasets, published folders."""
