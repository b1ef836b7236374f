"""A Model Context Protocol server for agents, with the same functions as the command line.

Read-only tools need no approval. Tools that spend money, end a run or take down a deployment show the amount
and ask the client's user for approval by elicitation. If the client does not support elicitation, the tool
fails and returns the command to run in a terminal.
"""
