"""`orchestrate serve`: serve a base model and its adapters with the chat completions API."""
