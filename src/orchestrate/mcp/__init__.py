"""What an agent may do: a server of the Model Context Protocol over the same service as the command line.

It reads without asking. Whatever spends, ends or takes down is put to the person in front of the client, with
its sum, by elicitation; a client that cannot ask gets the command to type instead.
"""
