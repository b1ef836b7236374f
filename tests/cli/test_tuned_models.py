"""A run that really trained: exported, merged, proved, and what the store keeps of that."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI
from tests.cli.conftest import Cli
from tests.cli.serving import served
from tests.paths import BUNDLED, TINY
from tests.unit.serving.conftest import random_adapter

from orchestrate import Orchestrator
from orchestrate.runs import tuned
from orchestrate.settings import config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ORDERS = BUNDLED / "orders"


def trained(cli: Cli, folder: Path, *more: str) -> str:
    """The id of a run of some steps on orders."""
    rows = (ORDERS / "train.jsonl").read_text().splitlines()[:96]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    done = cli(
        "submit", "--provider", "local", "--yes", "--watch", "--json", "--model", "tiny-chat",
        "--train", "train.jsonl",
        "--epochs", "3", "--set", "learning_rate=3e-3", "--set", "provider_options.local.threads=1", *more,
    )  # fmt: skip
    assert done.code == 0, done.err
    return done.json[0]["id"]


def test_from_training_to_proved_exports(cli: Cli, cli_env: dict[str, str], tmp_path: Path) -> None:
    run = trained(cli, tmp_path)
    assert list((tmp_path / "home").rglob("proof.json")), "the training kept no sheet"
    made = cli("export", run, "out", "--to", "peft", "--json")
    assert made.code == 0, made.err
    proof = made.json["proof"]
    assert {s["name"]: s["state"] for s in proof["stages"]} == dict.fromkeys(
        ("tokens", "answers", "distance", "stop"), "passed"
    ), proof
    again = cli("verify", run, "--at", "out")
    assert again.code == 0 and "proved" in again.out, again.out

    card = (tmp_path / "out" / "README.md").read_text()
    assert run in card and "sha256 of the rows" in card

    # The template of another family is put beside it: the next to see it is a user, unless this is seen here.
    shutil.copytree(tmp_path / "out", tmp_path / "bad")
    template = tmp_path / "bad" / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>\\n", "<|im_end|>"))
    caught = cli("verify", run, "--at", "bad")
    assert caught.code == 1 and "the server tokenizes prompts differently than in training:" in " ".join(
        caught.out.split()
    )
    assert "chat_template.jinja" in caught.err

    # As are two adapters of one base, made one.
    other = trained(cli, tmp_path, "--set", "seed=7", "--again")
    merged = cli("merge", run, other, "--method", "cat", "-o", "both", "--json")
    assert merged.code == 0, merged.err
    assert merged.json["error"] < 1e-3 and merged.json["proof"]["state"] in ("proved", "in part")
    assert json.loads((tmp_path / "both" / "passport.json").read_bytes())["merged"]["parts"][0]["of"] == run
    with Orchestrator(config.load(env=cli_env, cwd=tmp_path)) as ft:
        for part in (run, other):
            assert [made.folder for made in tuned.merges(ft, part)] == [merged.json["folder"]]
    refused = cli("merge", run, other, "--method", "cat", "-o", "both")
    assert refused.code == 2 and "already exists" in refused.err


def test_serving_from_the_command_to_its_end(cli: Cli, cli_env: dict[str, str], tmp_path: Path) -> None:
    run = trained(cli, tmp_path)
    key = cli("serve", "--new-key", "me").out.strip()
    assert key.startswith("orc-")
    with served(run, tmp_path, cli_env) as told:
        assert told["models"][1:] == [run] and told["proofs"][0]["state"] in ("proved", "in part")
        with OpenAI(base_url=told["url"], api_key=key) as client:
            asked: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            assert client.chat.completions.create(model=run, **asked).choices
        with (
            OpenAI(base_url=told["url"], api_key="orc-wrong", max_retries=0) as stranger,
            pytest.raises(AuthenticationError),
        ):
            stranger.models.list()
    name = "ft:gpt-4o-mini-2024-07-18:acme:support:AAAA1111"
    with (
        served(run, tmp_path, cli_env, "--as", name, "--no-prove") as told,
        OpenAI(base_url=told["url"], api_key=key) as client,
    ):
        assert told["models"][1:] == [name]
        assert client.chat.completions.create(model=name, **asked).model == name
    refused = cli("serve", run, "--as", name, "--as", "another")
    assert refused.code == 2 and "2 names for 1 model" in refused.err
    for engine in ("transformers", "vllm", "llama.cpp"):
        twice = cli("serve", run, run, "--as", "a", "--as", "a", "--engine", engine)
        assert twice.code == 2 and "named 'a'" in twice.err, (engine, twice.err)
    assert not list((tmp_path / "home" / "servers").iterdir())


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_an_adapter_of_a_host_is_loaded_on_the_model_that_its_id_means(cli: Cli, tmp_path: Path) -> None:
    """Hosts name base models by their own ids, which neither the Hub nor an engine knows."""
    adapter = random_adapter(tmp_path / "adapter", 1)
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    kept = tmp_path / "hub" / "models--Qwen--Qwen3-8B"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(TINY, kept / "snapshots" / ("0" * 40))
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "accounts/fireworks/models/qwen3-8b"}))
    for form in ("peft", "merged"):
        made = cli("export", "adapter", form, "--to", form, "--json", HF_HUB_CACHE=str(tmp_path / "hub"))
        assert made.code == 0, made.err
        assert made.json["proof"]["state"] == "proved", made.json["proof"]
    named = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == "Qwen/Qwen3-8B"
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "accounts/acme/models/ours"}))
    refused = cli("export", "adapter", "ours", "--to", "merged")
    assert refused.code == 2 and "passport.json" in refused.err, refused.err
