"""Code that all servers share.

web/ contains the guard, limits and pages. wire/ contains the request and response bodies of OpenAI's API.
"""
