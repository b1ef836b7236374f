"""From another account or backend, with proof that the new model does what the old one did."""
