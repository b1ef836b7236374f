"""`orchestrate serve`: one base and its adapters behind the chat completions API."""
