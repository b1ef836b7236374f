"""The store brought up to date with the hosts, or rebuilt from them."""
