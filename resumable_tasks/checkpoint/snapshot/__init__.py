"""A structure that is saved as a whole."""
