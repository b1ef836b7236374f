"""What several stand-ins share."""
