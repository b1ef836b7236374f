"""A Model Context Protocol server for agents, over the same service as the command line.

Tools that only read need no confirmation. Tools that spend, end or take something down ask the user of the
client by elicitation and show the amount. A client without elicitation gets the command to type instead.
"""
