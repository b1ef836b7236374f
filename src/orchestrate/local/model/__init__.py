"""Loading a model, and the parts of it that we run faster than the libraries do."""
