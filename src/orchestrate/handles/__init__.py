"""What can be done with a run, a deployment and a tuned model."""
