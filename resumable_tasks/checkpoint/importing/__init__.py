"""Imports progress that a program has kept by hand into a checkpoint."""
