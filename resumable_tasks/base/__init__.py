"""Tools that every room uses: the log, text, the clock, signals, fault points."""
