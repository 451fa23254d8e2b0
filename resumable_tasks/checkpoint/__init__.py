"""Memory of a job: places that open, units that commit, receipts."""
