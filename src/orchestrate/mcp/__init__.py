"""A Model Context Protocol server for agents, over the same service as the command line.

Tools that only read need no confirmation. Tools that spend money, end a run or take down a deployment show
the amount and request approval from the client's user by elicitation. A client without elicitation gets the
command to type instead.
"""
