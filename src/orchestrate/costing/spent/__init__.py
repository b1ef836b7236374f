"""What was spent, what is committed, and how good the quotes were."""
