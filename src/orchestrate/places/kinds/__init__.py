"""Built-in places, one module each, named by kind. `PROFILE` describes a place without loading its client."""
