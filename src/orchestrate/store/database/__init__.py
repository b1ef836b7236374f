"""The tables, opening them, and the right to work on them."""
