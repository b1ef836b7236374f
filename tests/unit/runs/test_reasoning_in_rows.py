"""data generate --reasoning: whether a chat template has a place for it."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.paths import TINY

from orchestrate.runs.data.generation import reasoning_of


def test_reasoning_is_kept_where_the_template_shows_it(tmp_path: Path) -> None:
    thinking = tmp_path / "thinking"
    shutil.copytree(TINY, thinking)
    (thinking / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = {model: reasoning_of(model, wanted=True) for model in (str(TINY), str(thinking), "gpt-4.1")}
    assert [kept for kept, _ in found.values()] == ["left out", "kept", "left out"]
    assert all(model in why for model, (_, why) in found.items())
    assert reasoning_of(None, wanted=False) == ("no", "")
