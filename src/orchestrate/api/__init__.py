"""The public Python API: one facade, which holds no logic."""
