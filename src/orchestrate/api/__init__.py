"""The public Python API: one facade without logic of its own."""
