"""What a store keeps, a kind of records a module."""
