"""Paid requests: one journal, one cost limit, one retry policy and one count for all of them."""
