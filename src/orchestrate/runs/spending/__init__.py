"""Spending: amounts spent and committed, and orphaned resources that are still billed."""
