"""Where keys may go, as the command tells it; and that nothing is sent before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.conftest import Cli
from tests.http_server import Handler, serving

KEY = "sk-proj-0123456789abcdefghij"


class Counting(Handler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.headers.get("authorization", ""))
        self.answer(200, {"object": "list", "data": [], "has_more": False})

    do_POST = do_GET


@pytest.fixture
def stranger() -> Iterator[tuple[str, list[str]]]:
    """A server that would take any key, and the keys that it was sent."""
    asked: list[str] = []
    with serving(Counting, asked=asked) as url:
        yield f"{url}/v1", asked


@pytest.fixture
def project(tmp_path: Path) -> Path:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    lines = [json.dumps(row).replace('"q"', f'"q{i}"') + "\n" for i in range(12)]
    (tmp_path / "train.jsonl").write_text("".join(lines))
    (tmp_path / "finetune.yaml").write_text("model: gpt-4.1-mini\ntrain: train.jsonl\n")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_key_is_not_sent_to_another_host(
    cli: Cli, project: Path, stranger: tuple[str, list[str]], place: str
) -> None:
    url, asked = stranger
    stored = cli("keys", "set", "openai", stdin=KEY + "\n")
    assert "the key is only sent to https://api.openai.com" in stored.err
    env = {"OPENAI_BASE_URL": url} if place == "environment" else {}
    if place == "file":
        (project / "orchestrate.toml").write_text(f'[hosts.openai]\nbase_url = "{url}"\n')
        assert json.loads(cli("runs", "--json").err.splitlines()[-1])["error"] == "ProjectNotTrusted"
        assert cli("keys", "trust", "--project").code == 0 and asked == []
    refused = cli("submit", "-p", "openai", "--yes", "--json", **env)
    assert refused.code == 3 and asked == []
    told = json.loads(refused.err.splitlines()[-1])
    assert told["error"] == "KeyElsewhere" and url.removesuffix("/v1") in told["message"]
    assert KEY not in refused.err + refused.out
    assert cli("runs", "--json").json == [], "nothing was written down either"

    assert cli("recover", "-p", "openai", "--json", **env).json["recovery"]["failures"]
    assert asked == []
    allowed = cli("keys", "trust", "openai", **env)
    assert allowed.code == 0 and KEY not in allowed.err
    rows = {row["backend"]: row for row in cli("keys", "list", "--json").json}
    assert rows["openai"]["hosts"] == sorted([url.removesuffix("/v1"), "https://api.openai.com"])
    cli("recover", "-p", "openai", **env)
    assert set(asked) == {f"Bearer {KEY}"}


def test_a_real_key_is_not_tied_to_a_sandbox_without_a_person(
    cli: Cli, stranger: tuple[str, list[str]], tmp_path: Path
) -> None:
    """As where the exports of `orchestrate sandbox` still stand in the shell."""
    exported = {"OPENAI_BASE_URL": stranger[0]}
    refused = cli("keys", "set", "openai", stdin=KEY + "\n", **exported)
    assert refused.code == 2 and "nothing was written" in refused.err and "a sandbox?" in refused.err
    assert "unset OPENAI_BASE_URL" in refused.err and not (tmp_path / "keys.toml").exists()
    assert cli("keys", "set", "openai", stdin="sandbox-anything\n", **exported).code == 0


@pytest.mark.slow
def test_the_first_use_is_told(cli: Cli, stranger: tuple[str, list[str]]) -> None:
    env = {"OPENAI_BASE_URL": stranger[0], "OPENAI_API_KEY": KEY}
    first = cli("-v", "recover", "-p", "openai", **env)
    assert "first use of API key sk-...ij (openai). From now on, the key is only sent to" in " ".join(
        first.err.split()
    )
    assert "first use" not in cli("-v", "recover", "-p", "openai", **env).err


@pytest.mark.slow
def test_a_project_that_names_a_further_host_needs_a_word(
    cli: Cli, project: Path, stranger: tuple[str, list[str]]
) -> None:
    (project / "orchestrate.toml").write_text(
        '[hosts.mycloud]\ntype = "openai"\nbase_url = "https://llm.example/v1"\n'
        "options = { retry_budget_s = 0.5 }\n"
    )
    assert "keys trust --project" in cli("keys", "set", "mycloud", stdin=KEY + "\n").err
    assert cli("keys", "trust", "--project").code == 0
    stored = cli("keys", "set", "mycloud", stdin=KEY + "\n")
    assert "orchestrate keys trust mycloud" in stored.err
    refused = cli("submit", "-p", "mycloud", "--model", "m", "--yes")
    assert refused.code == 3 and "orchestrate keys trust mycloud https://llm.example" in refused.err
    assert cli("keys", "trust", "mycloud", "http://llm.example").code == 3, "unencrypted"
    assert cli("keys", "trust", "nobody").code == 2
    assert cli("keys", "trust", "together").code == 3, (
        "unknown key name (not shown, because it may itself be a key)"
    )
    assert cli("keys", "trust", "mycloud").code == 0
    assert "tied" not in cli("submit", "-p", "mycloud", "--model", "m", "--yes").err
