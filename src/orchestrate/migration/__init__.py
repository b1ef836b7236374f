"""Leaving a backend before it closes: its past jobs, its models' answers, and the way to another one."""
