"""Built-in places, one module each, named after their kind. `PROFILE` describes a place, and reading it does
not load the place's client."""
