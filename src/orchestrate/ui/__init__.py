"""The local web app: runs, money, data and new runs as pages of this machine.

`site` is what all pages share, `server` serves them; each other module is one page with its actions. All that
a page shows or does comes from the same `Orchestrator` as the commands.
"""
