"""The chat templates that the installed TRL carries (Apache-2.0). The fast tests run over one per family:
its siblings share the constructs that go wrong. The slow tests run over all of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.resources import files
from typing import Any

import pytest

from orchestrate.data.tokens.chat_templates import CHATML

PUBLISHED = {"chatml": CHATML} | {
    file.name.removesuffix(".jinja"): file.read_text("utf-8")
    for file in files("trl").joinpath("chat_templates").iterdir()
    if file.name.endswith(".jinja")
}
FAST = {
    "chatml", "cohere2", "deepseek_r1_distill", "deepseekv3_training", "gemma3", "gemma4_v5", "glm4moe",
    "gptoss", "idefics3", "lfm2_2_5_v2", "llama3_1", "nemotron_3_ultra", "phi3_5_training", "qwen2_5",
    "qwen3", "qwen3_6", "qwen3_8_training",
}  # fmt: skip


def each(names: Iterable[str]) -> list[Any]:
    """Return templates' names as the parameters of a test."""
    slow = PUBLISHED.keys() - FAST
    return [pytest.param(name, marks=pytest.mark.slow if name in slow else ()) for name in sorted(names)]
