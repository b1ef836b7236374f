"""The ground of all pages and APIs that this machine serves.

`server` runs an ASGI app in a thread and stops it gracefully, `guard` lets in who may come, `pages` gives
pages and their actions one look and one safety.
"""
