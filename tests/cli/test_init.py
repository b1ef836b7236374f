"""`orchestrate init FILE`: the spec that it proposes passes its check, whatever rows the file holds."""

from __future__ import annotations

import csv
import json
import shlex
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


@pytest.mark.slow
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


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_of_few_rows_each_split_has_some_or_none_is_made(cli: Cli, tmp_path: Path, rows: int) -> None:
    chat = '{"messages": [{"role": "user", "content": "%s?"}, {"role": "assistant", "content": "%s!"}]}\n'
    words = [city * 9 for city in (*CITIES, "Lima", "Oslo")[:rows]]
    (tmp_path / "rows.jsonl").write_text("".join(chat % (word, word) for word in words))
    made = cli("init", "rows.jsonl")
    assert made.code == 0, made.err
    spec = yaml.safe_load((tmp_path / "finetune.yaml").read_text())
    splits = [name for name in ("train", "validation", "test") if name in spec]
    counts = [len((tmp_path / spec[name]).read_text().splitlines()) for name in splits]
    assert sum(counts) == rows and all(counts)
    assert len(splits) == (3 if rows > 2 else 1)
    if rows == 1:
        assert (
            "too few rows for a test split, so all are used for training. To evaluate, pass --test FILE"
            in made.err
        )
    if rows == 12:
        assert counts == [10, 1, 1], "as near to 80/10/10 as can be: ten are the least for some hosts"
    checked = cli("check")
    assert checked.code == 0, checked.out
    assert ("openai" in spec["model"]) == (rows == 12)
    assert (": the spec has no model for " in checked.err) == (rows < 12)


@pytest.mark.slow
def test_a_spec_that_is_there_stays_and_is_compared(cli: Cli, tmp_path: Path) -> None:
    tickets(tmp_path / "t.csv")
    assert cli("init", "t.csv", "--for", "local").code == 0
    mine = tmp_path / "finetune.yaml"
    mine.write_text(mine.read_text().replace("epochs: 3", "epochs: 5"))
    before = mine.read_text()
    refused = cli("init", "t.csv", "--for", "local")
    assert refused.code == 2 and "-o t.yaml" in refused.err and "--force" in refused.err
    beside = cli("init", "t.csv", "--for", "local", "-o", "new/other.yaml")
    assert beside.code == 0 and "-epochs: 5" in beside.err and "+epochs: 3" in beside.err
    assert mine.read_text() == before
    assert cli("check", "new/other.yaml").code == 0, "its files are named from where it lies"
    assert "-epochs: 5" in cli("init", "t.csv", "--for", "local", "--force").err
    assert mine.read_text() == before.replace("epochs: 5", "epochs: 3")


@pytest.mark.slow
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
    assert unknown.code == 1 and "--map question=COLUMN,answer=COLUMN" in unknown.err
    absent = cli("init", "absent.csv")
    assert absent.code == 2 and "absent.csv does not exist" in absent.err
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


def test_rows_that_are_left_out_are_told(cli: Cli, tmp_path: Path) -> None:
    chat = '{"messages": [{"role": "user", "content": "%s?"}, {"role": "assistant", "content": "%s!"}]}\n'
    unanswered = '{"messages": [{"role": "user", "content": "what now?"}]}\n'
    (tmp_path / "rows.jsonl").write_text("".join(chat % (city, city) for city in CITIES) + unanswered)
    made = cli("init", "rows.jsonl", "--for", "local")
    assert made.code == 0 and "10 rows, chat" in made.err, made.err
    assert "left out 1 row with errors. To list them: orchestrate data check rows.jsonl" in made.err


def test_the_command_that_shows_the_left_out_rows_knows_the_columns(cli: Cli, tmp_path: Path) -> None:
    own_table(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open("a") as table:
        table.write("99,The parcel 99 is late,\n")
    mapped = "question=Message body,answer=Team"
    made = cli("init", "t.csv", "--for", "local", "--map", mapped, "--ignore", "Ticket ID", COLUMNS="80")
    assert made.code == 0, made.err
    [line] = [one for one in made.err.splitlines() if one.startswith("orchestrate data check t.csv")]
    shown = cli(*shlex.split(line)[1:])
    assert shown.code == 1 and "empty-content" in shown.out and "40 of 41 rows good" in shown.err + shown.out


def test_init_and_check_see_the_same_goal_in_the_rows(cli: Cli, tmp_path: Path) -> None:
    tickets(tmp_path / "t.csv")
    made = cli("init", "t.csv", "--for", "local")
    assert "goal classification (inferred: 3 different answers)" in made.err
    checked = cli("check", "--provider", "local")
    assert "goal classification (inferred: 3 different answers)" in " ".join(checked.out.split())


def own_table(path: Path) -> None:
    lines = ["Ticket ID,Message body,Team"]
    lines += [
        f"{i},The parcel number {i * 7919} to {city} is late,{('east', 'west')[i % 2]}"
        for i, city in enumerate(CITIES * 4)
    ]
    path.write_text("\n".join(lines) + "\n")


def test_columns_of_ones_own_are_named_where_they_are_needed(cli: Cli, tmp_path: Path) -> None:
    own_table(tmp_path / "t.csv")
    refused = cli("init", "t.csv", "--for", "openai")
    assert refused.code == 1 and "--map question=COLUMN,answer=COLUMN" in refused.err
    made = cli("init", "t.csv", "--for", "openai", "--map", "question=Message body,answer=Team", "--json")
    assert made.code == 0, made.err
    assert made.json["rows"] == 4 * len(CITIES) and made.json["kind"].startswith("chat")
    spec = tmp_path / "own.yaml"
    spec.write_text("model: {openai: gpt-4.1-mini}\ntrain: t.csv\n")
    for command in ("check", "quote", "submit"):
        told = cli(command, "own.yaml", "--provider", "openai")
        assert told.code != 0 and "--map" not in told.err
        if command != "submit":  # which wants a key first
            assert "columns: {question: COLUMN, answer: COLUMN}" in told.err
    spec.write_text(spec.read_text() + "columns: {question: Message body, answer: Team, Ticket ID: null}\n")
    checked = cli("check", "own.yaml", "--provider", "openai", "--json")
    assert checked.code == 0, checked.err
    assert "unread-column" not in {p["code"] for p in checked.json["problems"]}
    chat = '{"messages": [{"role": "user", "content": "Late?"}, {"role": "assistant", "content": "east"}]}\n'
    (tmp_path / "chat.jsonl").write_text(chat)
    spec.write_text(spec.read_text() + "validation: chat.jsonl\n")
    other = cli("check", "own.yaml", "--provider", "openai")
    assert other.code != 0 and "--map" not in other.err
    assert "columns: {answer: Team}: no such column in the first rows of chat.jsonl" in other.err
    spec.write_text("model: {openai: gpt-4.1-mini}\ntrain: chat.jsonl\ncolumns: {Ticket ID: null}\n")
    assert "no such column" not in cli("check", "own.yaml", "--provider", "openai").err
    twice = cli("advise", "t.csv", "--map", "question=Message body,answer=Team", "--map", "answer=Ticket ID")
    assert twice.code == 2 and "answer to both Team and Ticket ID" in twice.err
    asked = cli("advise", "t.csv", "--map", "question=Message body,answer=Team", "--json")
    assert asked.code == 0 and asked.json["facts"]["rows"] == 4 * len(CITIES)


def test_a_fix_of_a_data_command_is_said_as_a_spec_can_do_it(cli: Cli, tmp_path: Path) -> None:
    messages = '[{"role": "user", "content": "%s?"}, {"role": "assistant", "content": "%s!"}]'
    chat = f'{{"messages": {messages}, "feedback": "bad"}}\n'
    (tmp_path / "rows.jsonl").write_text("".join(chat % (city, city) for city in CITIES))
    (tmp_path / "own.yaml").write_text("model: {openai: gpt-4.1-mini}\ntrain: rows.jsonl\n")
    checked = cli("check", "own.yaml", "--provider", "openai", "--json")
    fixes = {p["code"]: p.get("fix") for p in checked.json["problems"]}
    assert checked.code == 1 and "columns: {feedback: null}" in fixes["lost-meaning"]
    assert not [fix for fix in fixes.values() if "--ignore" in (fix or "") or "--map" in (fix or "")]
    with (tmp_path / "own.yaml").open("a") as spec:
        spec.write("columns: {feedback: null}\n")
    assert cli("check", "own.yaml", "--provider", "openai").code == 0


def test_duplicates_are_told_by_init_and_grouped_by_check(cli: Cli, tmp_path: Path) -> None:
    chat = '{"messages": [{"role": "user", "content": "%s?"}, {"role": "assistant", "content": "%s!"}]}\n'
    rows = [chat % (f"{city} {i}", city) for i in range(3) for city in CITIES]
    (tmp_path / "train.jsonl").write_text("".join(rows + rows))
    (tmp_path / "validation.jsonl").write_text(chat % ("Lima", "Peru") * 5)
    made = cli("init", "train.jsonl", "--for", "openai", "-o", "mine.yaml")
    assert made.code == 0, made.err
    assert (
        f"{len(rows)} rows of train.jsonl: an earlier row is identical: orchestrate data dedupe" in made.err
    )
    spec = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert spec["train"] == "train.jsonl" and spec["validation"] == "validation.jsonl"
    assert "orchestrate quote mine.yaml" in made.out
    checked = cli("check", "mine.yaml", "--provider", "openai")
    assert len(checked.out.splitlines()) < 20
    assert "train.jsonl rows" in checked.out and f"{len(rows) - 3} more" in checked.out
    assert "validation.jsonl rows" in checked.out


def test_a_second_spec_of_one_table_leaves_the_rows_of_the_first(cli: Cli, tmp_path: Path) -> None:
    own_table(tmp_path / "t.csv")
    first = ("--map", "question=Message body,answer=Team", "--ignore", "Ticket ID")
    assert cli("init", "t.csv", "--for", "openai", *first, "-o", "a.yaml").code == 0
    before = {file: file.read_bytes() for file in sorted((tmp_path / "t.split").iterdir())}
    same = cli("init", "t.csv", "--for", "openai", *first, "-o", "same.yaml")
    assert same.code == 0 and yaml.safe_load((tmp_path / "same.yaml").read_text())["train"].startswith(
        "t.split/"
    )
    other = cli(
        "init", "t.csv", "--for", "local", "--map", "prompt=Message body,completion=Team", "-o", "b.yaml"
    )
    assert other.code == 0, other.err
    assert "another spec uses t.split, which contains different rows" in other.err
    assert {file: file.read_bytes() for file in sorted((tmp_path / "t.split").iterdir())} == before
    spec = yaml.safe_load((tmp_path / "b.yaml").read_text())
    assert spec["train"] == "t-2.split/train.jsonl"
    assert "completion" in (tmp_path / spec["train"]).read_text()
    assert sorted(path.name for path in tmp_path.glob(".t*")) == [], "no scratch folder is left"
    for file in ("a.yaml", "b.yaml"):
        assert cli("check", file).code == 0
    again = cli("init", "t.csv", "--for", "local", "--map", "text=Message body", "-o", "b.yaml", "--force")
    assert again.code == 0 and "Message body" not in (tmp_path / "a.yaml").read_text()
    assert {file: file.read_bytes() for file in sorted((tmp_path / "t.split").iterdir())} == before


def test_the_command_beside_a_spec_that_is_there_can_be_pasted(cli: Cli, tmp_path: Path) -> None:
    own_table(tmp_path / "my table.csv")
    (tmp_path / "finetune.yaml").write_text("mine")
    mapped = ("--for", "openai", "--map", "question=Message body,answer=Team", "--ignore", "Ticket ID")
    refused = cli("init", "my table.csv", *mapped)
    line = next(one for one in refused.err.splitlines() if "orchestrate init" in one)
    made = cli(*shlex.split(line[line.index("orchestrate init") :])[1:])
    assert made.code == 0, made.err
    assert set(yaml.safe_load((tmp_path / "my table.yaml").read_text())["model"]) == {"openai"}
    assert (tmp_path / "finetune.yaml").read_text() == "mine"


def test_rows_with_images_become_a_spec_of_the_backends_that_see(cli: Cli, tmp_path: Path) -> None:
    image = '{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}'
    row = (
        '{"messages": [{"role": "user", "content": [%s, {"type": "text", "text": "What is this in %s?"}]}, '
        '{"role": "assistant", "content": "%s"}]}\n'
    )
    (tmp_path / "rows.jsonl").write_text("".join(row % (image, city, city) for city in CITIES * 2))
    made = cli("init", "rows.jsonl", "--json")
    assert "bug:" not in made.err, made.err
    assert made.code == 0 and "local" in made.json["left_out"] and "openai" in made.json["models"], made.err


def test_a_refused_kind_of_rows_names_the_command_that_converts_them(cli: Cli, tmp_path: Path) -> None:
    rows = [f'{{"prompt": "{city}?", "completion": "{city}!"}}\n' for city in CITIES]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "own.yaml").write_text("model: {openai: gpt-4.1-mini}\ntrain: rows.jsonl\n")
    checked = cli("check", "own.yaml", "--json")
    [fix] = [p["fix"] for p in checked.json["problems"] if p["code"] == "kind-refused"]
    assert cli(*shlex.split(fix)[1:]).code == 0, fix
    (tmp_path / "own.yaml").write_text("model: {openai: gpt-4.1-mini}\ntrain: rows.openai.jsonl\n")
    assert cli("check", "own.yaml").code == 0


def test_a_spec_of_a_place_alone_is_checked_there(cli: Cli, tmp_path: Path) -> None:
    rows = [f'{{"prompt": "{city}?", "completion": "{city}!"}}\n' for city in CITIES]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    (tmp_path / "own.yaml").write_text("model: {hf-jobs: qwen3-0.6b}\ntrain: rows.jsonl\n")
    checked = cli("check", "own.yaml", "--json")
    assert checked.json["backends"] == ["hf-jobs"], checked.err
    assert "no-model" not in {p["code"] for p in checked.json["problems"]}
    (tmp_path / "own.yaml").write_text("model: {hf-jobs: qwen3-0.6b, local: tiny-chat}\ntrain: rows.jsonl\n")
    both = cli("check", "own.yaml", "--json")
    assert both.json["backends"] == ["local", "hf-jobs"] and "for them" in both.err
