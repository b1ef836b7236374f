"""Places where a worker runs: this machine, a cluster or a rented GPU. All share one trainer and one format
of run directory. A place starts a worker on a run directory, reports whether it is alive, stops it, and
reports its cost."""
