"""What the library's own tests share with whoever tests a job, a store or a runner of theirs."""
