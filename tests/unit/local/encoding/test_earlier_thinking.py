"""Answers whose thinking the chat template drops once a further turn follows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from tests.unit.local.encoding.test_encoding import QWEN3, template

from orchestrate.data.tokens.thinking import Earlier
from orchestrate.local.encoding.encoded import encode_file


def test_it_is_trained_as_asked(tmp_path: Path) -> None:
    """Qwen's way: the answers after the last question are shown with their thinking."""
    of = template(QWEN3, ["<|im_start|>", "<|im_end|>"])
    asked = [{"role": "user", "content": word} for word in ("one", "two")]
    said = [{"role": "assistant", "content": n, "reasoning": f"so {n}"} for n in "12"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [asked[0], said[0], asked[1], said[1]]}) + "\n")
    found: dict[str, list[str]] = {}
    for earlier in get_args(Earlier):
        rows, report = encode_file(file, of, tmp_path / earlier, max_length=None, earlier=earlier)
        found[earlier] = [
            of.tokenizer.decode([i for i, w in zip(*rows.row(n), strict=True) if w])
            for n in range(rows.examples)
        ]
        told = " ".join(message for _, message in report.messages("train", None))
        assert ("earlier_thinking" in told) == (earlier == "train")
        assert ("rows of their own" in told) == (earlier == "split")
    first, last = (f"<think>\nso {n}\n</think>\n\n{n}<|im_end|>" for n in (1, 2))
    assert found == {"train": [f"1<|im_end|>{last}"], "split": [first, last], "untrained": [last]}
