"""What commands print at three widths: no number, id or sum is cut."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.cli.conftest import Cli

from orchestrate import JobSpec, config
from orchestrate.tracking import Store
from orchestrate.tracking.records.runs import Intent

CUT = re.compile(r"[\d$][…]|…\d")
COMMANDS = (
    "runs",
    "models list --provider together",
    "models show qwen3-8b",
    "prices list --provider openai",
    "providers",
    "keys",
    "doctor",
    "plan --provider openai,together,fireworks,local",
    "quote --provider openai,together,fireworks,local",
    "check --provider openai",
    "data inspect train.jsonl",
)


@pytest.mark.parametrize("width", [80, 100, 140])
def test_nothing_is_cut(cli: Cli, tmp_path: Path, width: int) -> None:
    row = '{"messages": [{"role": "user", "content": "q%d"}, {"role": "assistant", "content": "a"}]}\n'
    (tmp_path / "train.jsonl").write_text("".join(row % i for i in range(12)))
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4.1-mini, default: qwen3-8b}\ntrain: train.jsonl\nepochs: 3\n"
    )
    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Store.open(settings.store_url) as store:
        spec = JobSpec(model="accounts/fireworks/models/qwen3-8b", train="train.jsonl")
        made = [
            store.runs.create(Intent(spec=spec, provider=name, dataset_digest="d" * 64, host="h"))
            for name in ("fireworks", "openai")
        ]
    for words in COMMANDS:
        done = cli(*words.split(), COLUMNS=str(width), NO_COLOR="1", PYTHONIOENCODING="utf-8")
        assert "defect" not in done.err, (words, done.err)
        assert not CUT.search(done.out), f"{words} at {width} columns:\n{done.out}"
        if words == "runs":
            assert all(run.id in done.out for run in made), done.out
