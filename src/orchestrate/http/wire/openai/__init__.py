"""The form of OpenAI's API, which many speak."""
