"""Generate answers with a base model and its adapters, in a separate process."""
