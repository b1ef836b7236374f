"""Spending: what was spent, what is committed, and orphaned resources that bill."""
