"""A third-party backend, as small as the contract allows: a folder that takes jobs and finishes them at once."""
