"""What `--json` prints is what `orchestrate schema` says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from tests.cli.conftest import Cli

from orchestrate.cli import COMMANDS, LazyCommand
from orchestrate.commands.setup.schema import names, of

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [{"role": "user", "content": f"q{i % 9}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(30)
]


def _commands(command: Any, name: str) -> dict[str, Any]:
    inner = {f"{name} {k}": c for k, c in getattr(command, "commands", {}).items()}
    return {name: command} | {n: c for k, v in inner.items() for n, c in _commands(v, k).items()}


def test_every_command_with_json_has_a_schema_and_no_other() -> None:
    found: set[str] = set()
    without: set[str] = set()
    for panel, name, target, help in COMMANDS:
        loaded = LazyCommand(panel=panel, name=name, target=target, help=help).load()
        for full, command in _commands(loaded, name).items():
            if any("--json" in p.opts for p in command.params):
                found.add(full)
            elif not getattr(command, "commands", None):
                without.add(full)
    assert found == set(names()) - {"error"}
    page = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    told = page[page.index("- These have no `--json`") :].split("\n- ")[0]
    assert without == set(re.findall(r"`([a-z ]+)`", told)), "the page tells those that have none"


@pytest.mark.parametrize("command", names())
def test_schemas_are_schemas(command: str) -> None:
    jsonschema.Draft202012Validator.check_schema(of(command))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("check", "-p together"), ("plan", ""), ("quote", ""), ("runs", ""), ("watch", ""), ("sync", ""),
        ("quote", "--traffic 20k_req/day,_900_in,_150_out"), ("recover", "-p local"),
        ("data inspect", "train.jsonl"), ("data check", "train.jsonl"), ("data check", "train.jsonl --fix"),
        ("data convert", "train.jsonl --to sharegpt"), ("data split", "train.jsonl"),
        ("data dedupe", "train.jsonl"), ("advise", "train.jsonl"), ("models search", "qwen"),
        ("models show", "qwen3.5-9b"), ("prices list", ""), ("prices show", "qwen3.5-9b"),
        ("prices check", ""), ("prices accuracy", ""), ("init", "new"), ("keys list", ""), ("doctor", ""),
        ("providers", ""), ("models list", ""), ("keys", ""), ("prices", ""), ("local memory", "8B"),
        ("eval", "--list"), ("regress", "--list"), ("init", "train.jsonl -o other.yaml"),
    ],
)  # fmt: skip
def test_outputs_fit_their_schemas(cli: Cli, tmp_path: Path, command: str, options: str) -> None:
    rows = [json.dumps({"messages": row}) + "\n" for row in ROWS]
    (tmp_path / "train.jsonl").write_text("".join(rows))
    (tmp_path / "finetune.yaml").write_text("model: qwen3.5-9b\ntrain: train.jsonl\nepochs: 2\n")
    words = [word.replace("_", " ") for word in options.split()]
    done = cli(*command.split(), *words, "--json")
    assert done.code in (0, 1, 2) and done.out, done.err
    jsonschema.validate(done.json, of(command))


def test_errors_fit_their_schema(cli: Cli) -> None:
    for arguments in (("show", "zz"), ("nope",), ("plan",)):
        jsonschema.validate(json.loads(cli(*arguments, "--json").err), of("error"))


@pytest.mark.slow
def test_the_command_prints_them(cli: Cli) -> None:
    assert cli("schema", "data", "check").json["title"] == "orchestrate data check --json"
    assert cli("schema", "--all").json.keys() == set(names())
    assert cli("schema").out.splitlines() == names()
    wrong = cli("schema", "data", "chek")
    assert wrong.code == 2 and "did you mean data check?" in wrong.err


HOSTLESS = {
    "reads files, models or prices on this machine, whoever serves them": (
        "data inspect, data check, data convert, data split, data dedupe, data preview, data review, "
        "data from-review, data select, models search, models list, models show, models refresh, "
        "prices list, prices show, prices check, init, plugins, local bench, local memory, ab size"
    ),
    "translates a spec as for the real host, without address, job or price": "plan",
    "names the host by its address, and a sandbox with the mark of `served_by`": ("eval, regress"),
    "is about the rows or ratings that it wrote": ("review, data score, data from-record"),
    "names runs by id, which `show` and `runs` label": ("sync, worker, log"),
    "is a server on this machine, its pages, log or keys": (
        "ui, serve, ab serve, ab status, ab record, ab stop, gateway, gateway log, gateway keys add, "
        "gateway keys list, sessions serve"
    ),
    "is about this machine's settings; a sandbox's key is called that": "keys list, doctor",
    "is an error": "error",
}
"""Commands whose documents cannot say that a host is a sandbox, by the reason for it."""


def _says_sandbox(part: Any, parts: dict[str, Any], seen: set[str]) -> bool:
    if isinstance(part, list):
        return any(_says_sandbox(one, parts, seen) for one in part)
    if not isinstance(part, dict):
        return False
    if "sandbox" in part.get("properties", {}):
        return True
    name = str(part.get("$ref", "")).rpartition("/")[2]
    if name and name not in seen:
        seen.add(name)
        return _says_sandbox(parts[name], parts, seen)
    return any(_says_sandbox(one, parts, seen) for key, one in part.items() if key != "$defs")


@pytest.mark.parametrize("command", names())
def test_documents_about_a_host_say_whether_it_is_a_sandbox(command: str) -> None:
    schema = of(command)
    silent = {name for listed in HOSTLESS.values() for name in listed.split(", ")}
    says = _says_sandbox(schema, schema["$defs"], set())
    assert says is not (command in silent), f"{command} returns a HostOutput, or has a reason not to"
