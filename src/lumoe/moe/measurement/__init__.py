"""Speed: this machine's profile, throughput, residency, replayed budgets."""
