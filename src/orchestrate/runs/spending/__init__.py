"""What was spent, what is committed, and what bills without belonging to anything."""
