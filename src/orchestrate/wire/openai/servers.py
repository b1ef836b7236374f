"""Programs that speak the API."""

from __future__ import annotations

VLLM = "vllm.entrypoints.openai.api_server"
"""The module of vLLM's server, which runs where its command does not."""
