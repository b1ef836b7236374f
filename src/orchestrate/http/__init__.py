"""The basis of every server.

web/ has the guard, limits and pages. wire/ has the request and response bodies of OpenAI's API.
"""
