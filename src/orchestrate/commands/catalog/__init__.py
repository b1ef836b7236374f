"""What is known of base models and prices."""
