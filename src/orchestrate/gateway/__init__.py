"""`orchestrate gateway`: serve OpenAI's HTTP API for fine-tuning over any backend."""
