"""What a tuned model costs to run, against prompting a base model."""
