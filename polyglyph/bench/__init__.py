"""Speed against peers and targets; one file per bench, named like it, with a `BENCH`."""
