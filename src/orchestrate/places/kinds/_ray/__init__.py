"""A run of several workers on a Ray cluster: what the job runs, and what each worker does."""
