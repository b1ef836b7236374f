"""Generate answers of a base model and its adapters, in a separate process."""
