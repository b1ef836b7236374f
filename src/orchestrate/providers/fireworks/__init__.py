"""Fireworks: managed fine-tuning of open models with SFT, DPO and RFT through the `fireworks-ai` SDK."""
