"""Places where a worker runs: this machine, a cluster or a rented GPU. All use the same trainer and the same
format of run directory.

A place starts a worker on a run directory, reports whether the worker is alive, stops it, and reports its
cost.
"""
