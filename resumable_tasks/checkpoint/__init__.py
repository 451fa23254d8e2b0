"""What is remembered: places that open, units that commit, receipts."""
