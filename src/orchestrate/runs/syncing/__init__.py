"""Sync the store with the hosts, or rebuild it from them."""
