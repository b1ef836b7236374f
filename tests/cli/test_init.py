"""`orchestrate init FILE`: the spec that it proposes passes its check, whatever rows the file holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from tests.cli.conftest import Cli
from tests.paths import BUNDLED

CITIES = ("Athens", "Bergen", "Berlin", "Boston", "Cairo", "Denver", "Dublin", "Geneva", "Kyoto", "Leeds")
FAULTS = {"lamp": "hardware", "password": "account", "parcel": "shipping"}


def tickets(path: Path, columns: tuple[str, str] = ("body", "label")) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ticket_id", *columns])
        for i, city in enumerate(CITIES * 3):
            what = list(FAULTS)[i % 3]
            rows.writerow([i, f"My {what} number {i * 37} from {city} is lost, what now?", FAULTS[what]])


@pytest.mark.parametrize("columns", [("body", "label"), ("text", "category")])
def test_a_table_of_tickets_becomes_a_spec_that_every_backend_takes(
    cli: Cli, tmp_path: Path, columns: tuple[str, str]
) -> None:
    tickets(tmp_path / "tickets.csv", columns)
    made = cli("init", "tickets.csv")
    assert made.code == 0, made.err
    assert made.out.splitlines() == ["finetune.yaml", "next: orchestrate quote"]
    assert f"question={columns[0]},answer={columns[1]}" in made.err
    spec = yaml.safe_load((tmp_path / "finetune.yaml").read_text())
    jsonschema.validate(spec, json.loads((tmp_path / "finetune.schema.json").read_text()))
    assert set(spec["model"]) == {"openai", "together", "fireworks", "local"}
    rows = [json.loads(line) for line in (tmp_path / spec["train"]).read_text().splitlines()]
    assert {row["messages"][1]["content"] for row in rows} == set(FAULTS.values())
    checked = cli("check", "--json")
    assert checked.code == 0 and checked.json["backends"] == list(spec["model"])
    assert cli("quote").code == 0


@pytest.mark.parametrize(
    ("row", "method"),
    [
        ({"prompt": "{}?", "chosen": "yes {}", "rejected": "no {}"}, "dpo"),
        ({"prompt": "{}?", "completion": "yes {}", "label": True}, {"type": "dpo", "loss": "kto"}),
        ({"messages": [{"role": "user", "content": "{}?"}, {"role": "assistant", "content": "{}!"}]}, "sft"),
    ],
    ids=["pairs", "unpaired", "chat"],
)
def test_the_method_is_that_of_the_rows(
    cli: Cli, tmp_path: Path, row: dict[str, object], method: object
) -> None:
    line = json.dumps(row)
    (tmp_path / "rows.jsonl").write_text(
        "".join(line.replace("{}", f"{city} {i}") + "\n" for i, city in enumerate(CITIES))
    )
    made = cli("init", "rows.jsonl", "--for", "local,openai", "--json")
    assert made.code == 0, made.err
    assert made.json["method"] == method and "local" in made.json["models"]
    assert set(made.json["models"]) | set(made.json["left_out"]) == {"local", "openai"}
    assert cli("check", "--provider", ",".join(made.json["models"])).code == 0


def test_splits_that_are_there_are_taken_as_they_are(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        (folder / f"{name}.jsonl").write_bytes((BUNDLED / "orders" / f"{split}.jsonl").read_bytes())
    made = cli("init", "data", "--for", "local", "--json")
    assert made.code == 0, made.err
    assert made.json["files"] == {"train": "train.jsonl", "validation": "valid.jsonl", "test": "test.jsonl"}
    assert cli("check", "data/finetune.yaml", "--provider", "local").code == 0


def test_what_cannot_be_proposed_is_an_error_and_nothing_is_written(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": "x", "b": "y"}\n' * 3)
    unknown = cli("init", "a.jsonl")
    assert unknown.code == 1 and "--map prompt=COLUMN,completion=COLUMN" in unknown.err
    absent = cli("init", "absent.csv")
    assert absent.code == 2 and "absent.csv is not there" in absent.err
    (tmp_path / "finetune.yaml").write_text("mine")
    tickets(tmp_path / "t.csv")
    refused = cli("init", "t.csv")
    assert refused.code == 2 and "--force" in refused.err
    assert {path.name for path in tmp_path.iterdir()} <= {
        "a.jsonl",
        "t.csv",
        "finetune.yaml",
        "home",
        "keys.toml",
    }
    assert (tmp_path / "finetune.yaml").read_text() == "mine"
