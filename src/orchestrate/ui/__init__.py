"""The local web app: pages for runs, costs, data and new runs.

`site` is what all pages share, `server` serves them; each other module is one page with its actions. All that
a page shows or does comes from the same `Orchestrator` as the commands.
"""
