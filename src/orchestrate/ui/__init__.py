"""The local web app: pages for runs, costs, data and new runs.

`server` serves the pages, `site` contains what all pages share, and each other module is one page with its
actions. Pages use the same `Orchestrator` as the commands.
"""
