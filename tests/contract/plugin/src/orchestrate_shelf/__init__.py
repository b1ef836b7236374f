"""A third-party backend, as small as the contract allows: a folder that finishes each job at once."""
