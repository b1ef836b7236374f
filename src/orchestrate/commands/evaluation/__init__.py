"""Commands that evaluate tuned models: by metrics, judges, people and real users."""
