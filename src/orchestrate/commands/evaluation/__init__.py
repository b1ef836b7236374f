"""Commands that evaluate tuned models with metrics, judges, people and live traffic."""
