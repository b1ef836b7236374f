"""Commands for base models and prices."""
