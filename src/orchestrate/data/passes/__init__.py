"""One pass over a file on all cores, or over a Ray cluster, and what it finds between rows."""
