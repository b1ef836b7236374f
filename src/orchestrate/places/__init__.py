"""Places where a worker runs: this machine, a cluster, a rented GPU. All of them share one trainer and one
run directory. A place starts a worker on a run directory, reports whether it is alive, stops it, and reports
what it cost."""
