"""The simulated OpenAI."""
