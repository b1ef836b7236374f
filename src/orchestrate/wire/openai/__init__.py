"""The form of OpenAI's API, which many speak."""

BASE_URL_VARIABLE = "OPENAI_BASE_URL"
"""Where the official clients read the address that they call."""
