"""The public Python API: a facade without logic of its own."""
