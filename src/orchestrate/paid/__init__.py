"""Paid requests: one journal, one limit, one retry policy and one count for all of them."""
