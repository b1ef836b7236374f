"""Answers whose thinking the chat template drops once a further turn follows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, get_args

import pytest
from tests.cells import first
from tests.unit.local.encoding.test_encoding import QWEN3, template
from tests.unit.local.thinkers import make_family

from orchestrate.costing import PlannedJob
from orchestrate.costing.size import measure
from orchestrate.data import TrainingData
from orchestrate.data.dialects import target
from orchestrate.data.tokens.turns import Earlier
from orchestrate.local.encoding import Rules, Template
from orchestrate.local.encoding.encoded import encode_file
from orchestrate.local.model.adapters.starts import add_tokens
from orchestrate.local.model.loader import load_tokenizer
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec


def test_it_is_trained_as_asked(tmp_path: Path) -> None:
    """Qwen's way: the answers after the last question are shown with their thinking."""
    of = template(QWEN3, ["<|im_start|>", "<|im_end|>"])
    asked = [{"role": "user", "content": word} for word in ("one", "two")]
    said = [{"role": "assistant", "content": n, "reasoning": f"so {n}"} for n in "12"]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"messages": [asked[0], said[0], asked[1], said[1]]}) + "\n")
    found: dict[str, list[str]] = {}
    for earlier in get_args(Earlier):
        rows, report = encode_file(file, of, tmp_path / earlier, rules=Rules(earlier=earlier))
        found[earlier] = [
            of.tokenizer.decode([i for i, w in zip(*rows.row(n), strict=True) if w])
            for n in range(rows.examples)
        ]
        told = " ".join(message for _, message in report.messages("train", None))
        assert ("earlier_thinking" in told) == (earlier == "train")
        assert (
            "earlier answers with reasoning became separate training rows, in addition to the" in told
        ) == (earlier == "split")
    first, last = (f"<think>\nso {n}\n</think>\n\n{n}<|im_end|>" for n in (1, 2))
    assert found == {"train": [f"1<|im_end|>{last}"], "split": [first, last], "untrained": [last]}


@pytest.mark.parametrize("earlier", get_args(Earlier))
@pytest.mark.parametrize("added", [(), ("<|note|>", "so so")], ids=["plain", "added"])
@pytest.mark.parametrize(
    "more", first([{}, {"max_seq_length": 60, "truncation": "drop"}, {"train_on": "last"}], 2), ids=str
)
def test_a_quote_counts_the_rows_and_tokens_that_are_encoded(
    tmp_path: Path, earlier: Earlier, added: tuple[str, ...], more: dict[str, Any]
) -> None:
    model, file = make_family("thinks", tmp_path / "model"), tmp_path / "rows.jsonl"
    chance = random.Random(3)
    with file.open("w") as out:
        for n in range(12):
            messages: list[dict[str, object]] = []
            for _ in range(chance.randint(1, 4)):
                messages.append({"role": "user", "content": f"<|note|> Is {n} even?"})
                thought = {"reasoning": "so so " * chance.randint(1, 5)} if chance.random() < 0.7 else {}
                messages.append({"role": "assistant", "content": "<|note|>yes", **thought})
            out.write(json.dumps({"messages": messages}) + "\n")
    values = {"model": str(model), "train": str(file), "batch_size": 5, "epochs": 1, "max_steps": 99}
    train_on = more.get("train_on", "all")
    values |= {"method": {"type": "sft", "earlier_thinking": earlier, "train_on": train_on}}
    values |= {name: value for name, value in more.items() if name != "train_on"}
    spec = JobSpec.parse({**values, **({"added_tokens": added} if added else {})})
    tokenizer = load_tokenizer(model)
    if added:
        add_tokens(tokenizer, added)
    provider = LocalProvider(HostConfig(name="local", options={"home": str(tmp_path)}))
    data = TrainingData.open(spec.train)
    canonical = data.train.write(target(provider.name, provider.profile), tmp_path)
    rules = Rules(
        earlier=earlier,
        train_on=train_on,
        max_length=more.get("max_seq_length"),
        truncation=more.get("truncation", "right"),
    )
    rows, report = encode_file(canonical, Template(tokenizer), tmp_path / "e", rules=rules)
    assert (report.split > 0) == (earlier == "split" and train_on == "all")
    assert (report.too_long > 0) == ("truncation" in more)
    translation = provider.translate(spec)
    size = measure(PlannedJob("local", provider.profile, spec, data, translation, provider.resolve(spec)))
    assert (size.train_tokens, size.sequences, size.rows) == (rows.tokens, rows.examples, 12)
    steps = len(rows.batches(5, 0, 0))
    assert any(f"with {steps} per epoch" in note for note in size.notes)
