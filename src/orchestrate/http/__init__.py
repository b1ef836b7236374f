"""The basis of every server. web/ has the guard, limits and pages. wire/ has OpenAI's request and response
bodies."""
