"""What happens behind a job."""
