"""From another account or backend."""
