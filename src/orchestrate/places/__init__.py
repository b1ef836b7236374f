"""Where a worker runs: this machine, a cluster, a rented GPU. One trainer and one run directory for all of
them; a place starts a worker on a run directory, says whether it lives, stops it, and what it cost."""
