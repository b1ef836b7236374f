"""What the tuning was worth: by metrics, judges, people and real users."""
