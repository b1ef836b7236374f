"""The local web app: pages for runs, costs, data and new runs.

`site` has what all pages share, `server` serves them, and each other module is one page with its actions.
Pages use the same `Orchestrator` as the commands.
"""
