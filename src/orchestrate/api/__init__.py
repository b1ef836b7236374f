"""The public Python API, a thin facade over the other packages."""
