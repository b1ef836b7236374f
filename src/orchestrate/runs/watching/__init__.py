"""Watch runs until they end, and notify when one does."""
