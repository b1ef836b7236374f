"""Evaluations: contenders, metrics and comparisons."""
