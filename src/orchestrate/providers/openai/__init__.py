"""OpenAI, OpenAI-compatible hosts and Azure OpenAI, through the official SDK."""
