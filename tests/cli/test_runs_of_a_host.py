"""Runs of a sandboxed host by the command: their JSON, odd moments, other folders, a key that is gone."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from tests import command
from tests.cli.conftest import Cli
from tests.cli.terminals import Terminal, until

from orchestrate.commands.setup.schema import of
from orchestrate.sandbox import running
from orchestrate.sandbox.jobs import Durations

ROWS = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)]
ODD = "[bold]x[/nothing]"
STILL = Durations(file=0.0, validating=300.0)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running(
        home=tmp_path_factory.mktemp("sandbox"), train=False, speed=1000, waits=Durations(file=0.0)
    ) as sandbox:
        yield dict(sandbox.env)


@pytest.fixture(scope="module")
def slow_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with running(home=tmp_path_factory.mktemp("slow-sandbox"), train=False, waits=STILL) as sandbox:
        yield dict(sandbox.env)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    lines = [json.dumps({"messages": row}) + "\n" for row in ROWS]
    (folder / "train.jsonl").write_text("".join(lines))
    (folder / "test.jsonl").write_text(json.dumps({"messages": [{**m, "name": "n"} for m in ROWS[0]]}) + "\n")
    (folder / "finetune.yaml").write_text(
        f"model: gpt-4.1-mini\ntrain: train.jsonl\ntest: test.jsonl\ntags: {{odd: '{ODD}'}}\n"
    )
    return folder


@pytest.mark.slow
def test_the_json_of_a_run_fits_its_schemas(cli: Cli, project: Path, host: dict[str, str]) -> None:
    made = cli("submit", "-p", "openai", "--yes", "--watch", "--json", cwd=project, **host)
    assert made.code == 0, made.err
    jsonschema.validate(made.json, of("submit"))
    for word in ("show", "events", "metrics", "checkpoints", "watch", "cancel", "compare"):
        told = cli(word, "last", "--json", **host)
        assert told.code == 0, told.err
        jsonschema.validate(told.json, of(word))
    asked = cli("chat", "last", ODD, "again", "--json", **host)
    jsonschema.validate(asked.json, of("chat"))
    assert len(asked.json) == 2
    # The spec's test file is found from a folder that is not the spec's.
    judged = cli("eval", "last", "--limit", "1", "--json", **host)
    assert judged.code == 0, judged.err
    jsonschema.validate(judged.json, of("eval"))
    assert ODD in cli("show", "last", **host).out


@pytest.mark.slow
def test_a_run_shows_the_rows_that_its_host_trained_on(cli: Cli, project: Path, host: dict[str, str]) -> None:
    asked = ("--model", "qwen3-8b", "--yes", "--watch")
    assert cli("submit", "-p", "fireworks", *asked, cwd=project, **host).code == 0
    shown = cli("data", "preview", "last", "--row", "2", "--json", **host)
    assert shown.code == 0, shown.err
    jsonschema.validate(shown.json, of("data preview"))
    [row] = shown.json["rows"]
    said = "".join(token["text"] for token in row["tokens"] if token["weight"])
    assert row["row"] == 2 and "a1" in said and "q1" not in said
    assert cli("submit", "-p", "openai", "--yes", "--watch", cwd=project, **host).code == 0
    none = cli("data", "preview", "last", **host)
    assert none.code == 2 and "the backend does not show how it tokenizes rows" in none.err
    assert "--model" in cli("data", "preview", "train.jsonl", cwd=project).err


@pytest.mark.slow
def test_what_was_kept_is_probed_and_too_little_stops_a_build(
    cli: Cli, project: Path, host: dict[str, str]
) -> None:
    assert cli("submit", "-p", "openai", "--yes", "--watch", cwd=project, **host).code == 0
    [said] = cli("chat", "last", "one?", "--json", **host).json
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": said["content"]}]}
        for q in ("one?", "two?", "three?")
    ]
    (project / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("regress", "last", "--probes", "general-text", "--set", "own.jsonl=exact_match", "--gate")
    told = cli(*asked, "--json", cwd=project, **host)
    jsonschema.validate(told.json, of("regress"))
    [own] = told.json["results"]
    assert told.code == 1, "three rows prove nothing"
    assert (own["probe"], own["decision"], own["tuned"]["value"]) == ("own", "inconclusive", 1)
    assert any("skipped general-text: it needs log-probabilities" in n for n in told.json["notes"])
    assert "(sandbox)" in told.json["tuned"]["served_by"] and "3 requests" in told.err
    wrong = cli(*asked, "-o", "r.pdf", cwd=project, **host)
    assert wrong.code == 2 and "the file extension sets the format:" in wrong.err
    assert cli(*asked, "-o", "r.md", "--junit", "r.xml", cwd=project, **host).code == 1
    assert "| own | inconclusive |" in (project / "r.md").read_text()
    suite = ElementTree.parse(project / "r.xml").getroot()
    assert (suite.attrib["tests"], suite.attrib["errors"]) == ("1", "1")
    for form in ("html", "txt", "json"):
        assert cli(*asked, "-o", f"r.{form}", cwd=project, **host).code == 1
        assert "own" in (project / f"r.{form}").read_text()
    shown = cli(*asked, "--margin", "1", cwd=project, **host)
    assert shown.code == 0 and "kept" in shown.out and "3 answered before" in shown.err
    assert "arithmetic" in cli("regress", "--list").out
    for wrong, why in (((), "name the run"), (("last", "--probes", "zz"), "unknown probe 'zz'")):
        refused = cli("regress", *wrong, cwd=project, **host)
        assert refused.code == 2 and why in refused.err


@pytest.mark.slow
def test_what_cannot_be_done_is_refused_before_anything_is_asked(
    cli: Cli, project: Path, host: dict[str, str]
) -> None:
    assert cli("submit", "-p", "openai", "--yes", "--watch", cwd=project, **host).code == 0
    (project / "finetune.json").write_text('[{"name": "look"}]')
    for wrong, why in (
        (("eval", "last", "--metric", "zz"), "known: auto"),
        (("eval", "last", "--on", "zz"), "--on must be"),
        (("eval", "last", "zz"), "unknown run"),
        (("chat", "last", " "), "the message is empty"),
        (("chat", "last", "a", "--tools", "nosuch.json"), "cannot read --tools nosuch.json"),
        (
            ("chat", "last", "a", "--tools", str(project / "train.jsonl")),
            "must contain a list of tools with function names",
        ),
        (
            ("chat", "last", "a", "--tools", str(project / "finetune.json")),
            "must contain a list of tools with function names",
        ),
        (("pause", "last"), "nothing to pause"),
        (("resume", "last"), "nothing to resume"),
        (("download", "last"), "openai has no download"),
        (("compare", "last", "-o", "/dev/null/x.html"), "/dev/null"),
    ):
        told = cli(*wrong, **host)
        assert told.code in (2, 3) and why in told.err and "bug:" not in told.err


def test_a_key_that_is_gone_stops_only_its_own_backend(cli: Cli, project: Path, host: dict[str, str]) -> None:
    (project / "finetune.yaml").write_text(
        "model: {openai: gpt-4.1-mini, fireworks: qwen3.5-9b}\ntrain: train.jsonl\n"
    )
    made = cli("submit", "-p", "openai,fireworks", "--yes", "--json", cwd=project, **host)
    assert made.code == 0, made.err
    told = cli("sync", "--json", **{k: v for k, v in host.items() if k != "OPENAI_API_KEY"})
    jsonschema.validate(told.json, of("sync"))
    assert told.code == 4 and [f["provider"] for f in told.json["failures"]] == ["openai"]
    assert told.json["checked"] == 1


def test_no_log_shows_a_key(cli_env: dict[str, str], project: Path, host: dict[str, str]) -> None:
    (project / "finetune.yaml").write_text(
        "model: {openai: gpt-4.1-mini, together: qwen3.5-9b, fireworks: qwen3.5-9b}\ntrain: train.jsonl\n"
    )
    # Wide, so that no line is broken within a key; the SDKs' own DEBUG logs are among the lines.
    env = cli_env | host | {"COLUMNS": "4000", "OPENAI_LOG": "debug"}
    words = ["-vv", "submit", "-p", "openai,together,fireworks", "--yes"]
    done = command.run(words, cwd=project, env=env)
    assert done.code == 0 and b"DEBUG" in done.err and b"send_request_headers" in done.err
    for name, value in host.items():
        if name.endswith("_API_KEY"):
            assert value.encode() not in done.err + done.out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_leaving_the_live_view_gives_the_terminal_back(
    cli: Cli, cli_env: dict[str, str], project: Path, slow_host: dict[str, str], name: str, code: int
) -> None:
    # A terminal of its own, as only there the view is drawn and the cursor hidden.
    made = cli("submit", "-p", "openai", "--yes", "--json", cwd=project, **slow_host)
    [run] = made.json
    watching = Terminal(cli_env | slow_host | {"TERM": "xterm"}, project, "watch", run["id"])
    until(lambda: b"ftjob-" in watching.shown or b"openai" in watching.shown, "the view")
    watching.send(getattr(signal, name))
    assert watching.finish() == code
    shown = watching.shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l"), "the cursor is visible again"
    assert f"orchestrate watch {run['id']}".encode() in shown.replace(b"\r\n", b" ")
    assert cli("cancel", run["id"], **slow_host).code == 0
