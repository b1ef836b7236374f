"""Rates as data, and how one is looked up."""
