"""Together: fine-tuning of open models with SFT and DPO, LoRA and full, through the `together` SDK."""
