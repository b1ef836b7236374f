"""HTTP APIs as data: bodies, errors and pages, for whoever answers in their form."""
