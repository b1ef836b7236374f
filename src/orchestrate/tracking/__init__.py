"""Runs, kept: the store, the submit protocol, the sync with the hosts and the watcher.

Import the modules, not this package: `store` brings SQLAlchemy with it, which only commands that touch runs
should pay for.
"""
