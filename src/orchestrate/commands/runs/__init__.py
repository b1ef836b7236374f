"""Commands that list, follow and manage runs, and show their cost."""
