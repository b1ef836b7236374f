"""Hosts that speak OpenAI's fine-tuning API, each described by one YAML file."""
