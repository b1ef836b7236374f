"""tinker-cookbook's own recipes, unmodified, against a server of this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.outside import program
from tests.paths import TINY
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.test_server import NAME

from orchestrate import sessions

pytestmark = [pytest.mark.slow, pytest.mark.outside]
CARD = """---
configs:
- config_name: {config}
  data_files:
  - split: train
    path: {config}/train.jsonl
  - split: test
    path: {config}/test.jsonl
---
"""
SMALL = ("batch_size=4", "max_length=256", "lora_rank=4")
BY_PUBLISHED_LOSS = ("loss_fn=importance_sampling",)
"""Their default, `stable_reinforce`, has no published formula."""
RECIPES = {
    "supervised": ("sl_loop", *SMALL, "max_steps=4", "save_every=2"),
    "resumed": ("sl_loop", *SMALL, "max_steps=6", "save_every=2"),
    "reinforcement": (
        "rl_loop",
        "batch_size=2",
        "group_size=2",
        "max_tokens=8",
        "max_steps=2",
        "loss_fn=gspo",
    ),
    "preferences": ("preference.dpo.train", "dataset=hhh", "batch_size=4", "max_length=128", "max_steps=2"),
    "arithmetic": (
        *("math_rl.train", "env=arithmetic", "group_size=2", "groups_per_batch=2", "max_tokens=6"),
        *("loss_fn=ppo", "lora_rank=4", "max_steps=2"),
    ),
    "sl_basic": ("sl_basic", "lora_rank=4", "max_steps=2"),
    "rl_basic": ("rl_basic", *BY_PUBLISHED_LOSS, "lora_rank=4", "max_tokens=6", "max_steps=1"),
    "numerics": (
        *("rl_numerics_check.train", "group_size=2", "groups_per_batch=2", "max_tokens=6", "lora_rank=4"),
        *("task.num_pages_min=1", "task.num_pages_max=2", "task.page_chars=100", "max_steps=2"),
        "max_trajectory_tokens=900",
    ),
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1)
    home = tmp_path_factory.mktemp("home")
    with workspace(home) as ft, sessions.serve(ft, str(TINY), terms) as up:
        yield up.url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes look for models and data in folders named as on the hub before they ask the hub."""
    root = tmp_path_factory.mktemp("recipes")
    shutil.copytree(TINY, root / NAME)
    chat = [
        {
            "messages": [
                {"role": "user", "content": f"{n} plus {n}?"},
                {"role": "assistant", "content": f"{2 * n}"},
            ]
        }
        for n in range(256)  # sl_basic has 128 a batch, and no option for it
    ]
    sums = [{"question": f"{n} plus 2?", "answer": f"#### {n + 2}"} for n in range(8)]
    pairs = [
        {
            "chosen": f"\n\nHuman: say {n}\n\nAssistant: {n}",
            "rejected": f"\n\nHuman: say {n}\n\nAssistant: no",
        }
        for n in range(40)
    ]
    words = [{"text": f"{n} words that many know, and only after a time over others"} for n in range(200)]
    data = {
        "HuggingFaceH4/no_robots": chat,
        "openai/gsm8k/main": sums,
        "Anthropic/hh-rlhf": pairs,
        "Salesforce/wikitext/wikitext-103-raw-v1": words,
    }
    for place, rows in data.items():
        (root / place).mkdir(parents=True)
        for split in ("train", "test"):
            (root / place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("openai/gsm8k/main", "Salesforce/wikitext/wikitext-103-raw-v1"):
        config = Path(name).name
        (root / name).with_name("README.md").write_text(CARD.format(config=config))
    return root


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs_to_its_end(name: str, url: str, folder: Path) -> None:
    python, (recipe, *options) = program("tinker-cookbook"), RECIPES[name]
    log = folder / "log" / ("supervised" if name == "resumed" else name)
    if name == "resumed":  # as if the first one had been killed before its end
        kept = (log / "checkpoints.jsonl").read_text().splitlines()
        (log / "checkpoints.jsonl").write_text("\n".join(one for one in kept if '"final"' not in one) + "\n")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    own = {
        "TINKER_BASE_URL": url,
        "TINKER_API_KEY": "tml-key-of-the-test",
        "TINKER_TELEMETRY": "0",
        **offline,
    }
    module = f"tinker_cookbook.recipes.{recipe}"
    done = subprocess.run(
        [python, "-m", module, f"model_name={NAME}", f"log_path={log}", *options],
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: list[dict[str, Any]] = [
        json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()
    ]
    assert told
    if name == "resumed":  # by a process that went on where the first one saved
        steps = [one["step"] for one in told]
        assert steps[:4] == [0, 1, 2, 3] and steps[-2:] == [4, 5]
        nll = {n: [one["train_mean_nll"] for one in told if one["step"] == n] for n in steps}
        assert nll[2] == [nll[2][0]] * 2, "the step after the save is the same to the digit"
