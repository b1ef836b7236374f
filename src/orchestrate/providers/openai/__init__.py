"""OpenAI, OpenAI-compatible hosts and Azure OpenAI, through the official SDK."""

from orchestrate.providers.openai.provider import OpenAIProvider

__all__ = ["OpenAIProvider"]
