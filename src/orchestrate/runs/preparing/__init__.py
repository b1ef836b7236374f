"""What a submit would be on each backend, and what it would cost, before anything is sent."""
