"""Spending: money spent and committed, and orphaned resources that are billed."""
