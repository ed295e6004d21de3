"""What can be known before anything starts: checks, plans, the machine, data against verifier."""
