"""What every request passes, and the pages that are the sandbox's own."""
