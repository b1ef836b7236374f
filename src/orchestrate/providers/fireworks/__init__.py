"""Fireworks: managed fine-tuning of open models with SFT, DPO and RFT through the `fireworks-ai` SDK."""

from orchestrate.providers.fireworks.provider import FireworksProvider

__all__ = ["FireworksProvider"]
