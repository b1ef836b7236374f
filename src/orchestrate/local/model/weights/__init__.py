"""A model's own weights, read into the form that they are trained over."""
