"""Anyscale's own client."""
