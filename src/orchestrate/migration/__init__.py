"""Migration from a backend before it shuts down: import its past jobs, record its models' answers, and train
elsewhere."""
