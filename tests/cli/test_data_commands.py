"""orchestrate data: what goes to stdout and stderr, and the exit codes."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import command, forking
from tests.cli.conftest import Result
from tests.paths import BUNDLED, FIXTURES

from orchestrate.data.operations.check import CheckReport
from orchestrate.data.operations.convert import ConvertReport
from orchestrate.data.operations.dedupe import DedupeReport
from orchestrate.data.operations.fix import FixReport
from orchestrate.data.operations.inspect import InspectReport
from orchestrate.data.operations.preview import PreviewReport
from orchestrate.data.operations.split import SplitReport

ORDERS = BUNDLED / "orders"
GOOD = FIXTURES / "datasets" / "formats" / "good"
BAD = FIXTURES / "datasets" / "formats" / "bad"
TINY = BUNDLED / "tiny-chat"
Way = Callable[..., command.Ended]


def run(*arguments: object, cwd: Path, code: int = 0, way: Way = command.here) -> Result:
    env = {name: value for name, value in os.environ.items() if command.READ_ONCE.match(name)}
    env |= {"HOME": str(cwd), "COLUMNS": "160", "NO_COLOR": "1"}
    done = way(["data", *map(str, arguments)], cwd=cwd, env=env)
    result = Result(done.code, done.out.decode(), done.err.decode())
    assert result.code == code, result.out + result.err
    assert "Traceback" not in result.err
    return result


def json_of(*arguments: object, cwd: Path, code: int = 0) -> Any:
    """stdout is one JSON document and nothing else."""
    return json.loads(run(*arguments, "--json", cwd=cwd, code=code).out)


@pytest.mark.slow
def test_inspect(tmp_path: Path) -> None:
    shown = run("inspect", ORDERS / "train.jsonl", cwd=tmp_path).out
    assert "openai-chat" in shown and "█" in shown and "o200k" in shown
    report = msgspec.convert(json_of("inspect", ORDERS / "train.jsonl", cwd=tmp_path), InspectReport)
    assert report.rows == len((ORDERS / "train.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_inspect_with_a_models_tokenizer(tmp_path: Path) -> None:
    report = json_of("inspect", ORDERS / "test.jsonl", "--model", TINY, cwd=tmp_path)
    assert report["tokenizer"].startswith("hf:") and report["tokens_exact"] is True


def test_check_of_good_data(tmp_path: Path) -> None:
    arguments = (
        "check",
        ORDERS / "train.jsonl",
        "--validation",
        ORDERS / "validation.jsonl",
        "--method",
        "sft",
    )
    done = run(*arguments, cwd=tmp_path)
    assert done.out.count("ready") == 4
    report = msgspec.convert(json_of(*arguments, cwd=tmp_path)["report"], CheckReport)
    assert report.ok and [f.split for f in report.files] == ["train", "validation"]


def test_check_of_bad_data_exits_with_1(tmp_path: Path) -> None:
    done = run("check", BAD / "bad-role.jsonl", "--for", "together", cwd=tmp_path, code=1)
    assert "bad-role" in done.out and "row 4" in done.out and "fireworks" not in done.out
    report = msgspec.convert(
        json_of("check", BAD / "bad-role.jsonl", cwd=tmp_path, code=1)["report"], CheckReport
    )
    assert not report.ok and {h.host for h in report.hosts} == {"openai", "together", "fireworks", "local"}


def test_check_finds_leakage(tmp_path: Path) -> None:
    done = run("check", ORDERS / "train.jsonl", "--test", ORDERS / "train.jsonl", cwd=tmp_path, code=1)
    assert "leakage" in done.out


def test_what_check_has_not_looked_for_is_said_only_then(tmp_path: Path) -> None:
    files = (ORDERS / "train.jsonl", "--validation", ORDERS / "validation.jsonl")
    said = "skipped the check for near-duplicates. To run it (takes about twice as long): --near"
    assert said not in run("check", *files, cwd=tmp_path).err
    assert said in run("check", *files, "--no-near", cwd=tmp_path).err
    assert said in run("check", files[0], cwd=tmp_path).err


def test_check_counts_for_the_model(tmp_path: Path) -> None:
    report = json_of("check", ORDERS / "train.jsonl", "--model", "gpt-4.1-mini", cwd=tmp_path)["report"]
    assert report["files"][0]["tokenizer"] == "o200k" and report["files"][0]["tokens_exact"] is False


def test_fix_replaces_none_of_the_checked_files(tmp_path: Path) -> None:
    valid = tmp_path / "valid.jsonl"
    valid.write_bytes((ORDERS / "test.jsonl").read_bytes())
    arguments = ("check", ORDERS / "train.jsonl", "--validation", valid, "--fix", "-o", valid)
    assert "is also the input file" in run(*arguments, cwd=tmp_path, code=2).err


def test_fix_writes_a_copy_beside(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes((BAD / "bad-role.jsonl").read_bytes())
    done = run("check", file, "--fix", cwd=tmp_path, code=1)
    assert "train.fixed.jsonl" in done.out and "bad-role 1" in done.out
    # 4 rows are too few for OpenAI; the rows themselves are right now.
    run("check", tmp_path / "train.fixed.jsonl", "--for", "together,fireworks,local", cwd=tmp_path)
    fixed = json_of("check", file, "--fix", cwd=tmp_path, code=1)["fix"]
    assert msgspec.convert(fixed, FixReport).repaired == {"bad-role": 1}


def test_convert(tmp_path: Path) -> None:
    arguments = ("convert", GOOD / "sharegpt.jsonl", "--to", "fireworks", "-o", tmp_path / "out.jsonl")
    report = msgspec.convert(json_of(*arguments, cwd=tmp_path), ConvertReport)
    assert report.written == 3 and "messages" in (tmp_path / "out.jsonl").read_text()


def test_convert_names_the_formats_that_there_are(tmp_path: Path) -> None:
    refused = run("convert", GOOD / "sharegpt.jsonl", "--to", "x/y", cwd=tmp_path, code=2)
    assert "no format 'x/y'. Available formats: openai" in refused.err and "bug:" not in refused.err
    refused = run("convert", GOOD / "sharegpt.jsonl", "--to", "shargpt", cwd=tmp_path, code=2)
    assert "did you mean sharegpt?" in refused.err
    # As `data inspect` calls it.
    refused = run("convert", GOOD / "sharegpt.jsonl", "--to", "openai-chat", cwd=tmp_path, code=2)
    assert "openai-chat but not write it (did you mean openai?)" in refused.err


def test_convert_refuses_loss(tmp_path: Path) -> None:
    arguments = ("convert", GOOD / "reasoning.jsonl", "--to", "openai", "-o", tmp_path / "out.jsonl")
    refused = run(*arguments, cwd=tmp_path, code=1)
    assert "thinking" in refused.err and "--allow-loss" in refused.err and refused.out == ""
    done = run(*arguments, "--allow-loss", cwd=tmp_path)
    assert "3 rows" in done.out and "thinking" in done.err


def test_convert_into_a_pipe(tmp_path: Path) -> None:
    arguments = ("convert", GOOD / "sharegpt.jsonl", "--to", "fireworks", "-o", "-")
    done = run(*arguments, cwd=tmp_path, way=command.run)  # it writes to the process's own file
    assert [list(json.loads(line)) for line in done.out.splitlines()] == [["messages"]] * 3
    assert "3 rows" in done.err and not list(tmp_path.glob("-*"))
    assert "standard output" in run(*arguments, "--json", cwd=tmp_path, code=2).err


def test_split(tmp_path: Path) -> None:
    report = msgspec.convert(
        json_of("split", ORDERS / "train.jsonl", "80/20", "-o", tmp_path / "out", cwd=tmp_path), SplitReport
    )
    assert [f.split for f in report.files] == ["train", "validation"]
    assert sum(f.rows for f in report.files) == report.rows
    assert "validation" in run("split", ORDERS / "train.jsonl", "-o", tmp_path / "three", cwd=tmp_path).out


def test_dedupe(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((ORDERS / "test.jsonl").read_text() * 2)
    report = msgspec.convert(json_of("dedupe", file, "--near", cwd=tmp_path), DedupeReport)
    assert report.exact == report.rows // 2 and (tmp_path / "rows.deduped.jsonl").exists()


def test_split_and_dedupe_say_what_they_write(tmp_path: Path) -> None:
    rows = [
        {"id": i, "conversations": [{"from": "human", "value": f"{i}?"}, {"from": "gpt", "value": f"{i}."}]}
        for i in range(12)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (("split", file, "50/50", "--no-near"), ("dedupe", file)):
        said = run(*words, cwd=tmp_path).err
        assert "read as sharegpt, written as openai-chat" in said
        assert "unknown fields dropped (12 times)" in said
    own = (tmp_path / "rows.deduped.jsonl").read_text().splitlines()
    assert len(own) == 12 and "id" not in json.loads(own[0])
    again = run("dedupe", "rows.deduped.jsonl", "-o", "again.jsonl", cwd=tmp_path).err
    assert "written as" not in again and "left out" not in again


def test_preview_marks_what_is_trained(tmp_path: Path) -> None:
    arguments = ("preview", ORDERS / "train.jsonl", "--model", TINY, "--row", 3)
    report = msgspec.convert(json_of(*arguments, cwd=tmp_path), PreviewReport)
    (row,) = report.rows
    source = json.loads((ORDERS / "train.jsonl").read_text().splitlines()[2])["messages"]
    trained = "".join(t.text for t in row.tokens if t.weight)
    assert trained == source[-1]["content"] + "<|im_end|>" and row.row == 3
    assert source[0]["content"] in "".join(t.text for t in row.tokens)
    page = tmp_path / "page.html"
    run(*arguments, "--html", page, cwd=tmp_path)
    body = page.read_text().split("<pre>")[1].split("</pre>")[0]
    assert body.count("</b>") == row.trained
    # Nothing between the tags: what the page shows is the text that the model sees.
    shown = re.sub(r"<[^>]*>", "", body).replace("⏎", "")
    assert html.unescape(shown) == "".join(t.text for t in row.tokens)
    assert [t.text for t in row.tokens if t.special] == ["<|im_start|>", "<|im_end|>"] * 2
    # Without colours, as in a pipe, the trained text stands between marks.
    assert f"⟦{trained}⟧" in run(*arguments, cwd=tmp_path).out


def test_preview_goes_by_the_chat_template_of_a_spec(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{{ m.role }}{{ mark }}{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    arguments = ("preview", ORDERS / "train.jsonl", "--model", TINY, "--chat-template", "own.jinja")
    report = json_of(*arguments, "--chat-template-kwargs", "mark=': '", cwd=tmp_path)
    text = "".join(token["text"] for token in report["rows"][0]["tokens"])
    assert text.startswith("user: ") and "<|im_end|>assistant: " in text
    assert "could not read" in run(*arguments[:-1], "none.jinja", cwd=tmp_path, code=2).err


def test_what_the_engine_does_not_train_on_is_said(tmp_path: Path) -> None:
    pictures = run("preview", GOOD / "openai_images.jsonl", "--model", TINY, cwd=tmp_path)
    assert "images are ignored: the engine on this machine trains only on text" in pictures.err
    assert "RFT prompts" in run("preview", GOOD / "rft.jsonl", "--model", TINY, cwd=tmp_path, code=1).err


def test_a_row_too_long_to_show_is_said(tmp_path: Path) -> None:
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps({"text": "word " * 500_000}) + '\n{"text": "short"}\n')
    told = run("preview", file, "--model", TINY, cwd=tmp_path, code=1)
    assert "row 1" in told.err and "--row 2" in told.err
    assert "row 2:" in run("preview", file, "--model", TINY, "--row", "2", cwd=tmp_path).out


def test_preview_escapes_html(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "<script>alert(1)</script>"}\n')
    run("preview", file, "--model", TINY, "--html", tmp_path / "page.html", cwd=tmp_path)
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_preview_without_the_tokenizer_says_what_to_give(tmp_path: Path) -> None:
    done = run("preview", ORDERS / "train.jsonl", "--model", "qwen3-8b", cwd=tmp_path, code=3)
    assert "--model FOLDER" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("check", "nowhere.jsonl"), 1, "No such file"),
        (("check", ORDERS / "test.jsonl", "--for", "nowhere"), 2, "nowhere"),
        (("check", ORDERS / "test.jsonl", "--method", "magic"), 2, "sft, dpo, kto, rft"),
        (("check", ORDERS / "test.jsonl", "--tokenizer", "magic"), 2, "o200k"),
        (("check", ORDERS / "test.jsonl", "--model", "no such model"), 2, "no such model"),
        (("inspect", ORDERS / "test.jsonl", "--map", "prompt"), 2, "FIELD=COLUMN"),
        (("split", ORDERS / "test.jsonl", "all"), 2, "80/10/10"),
        (("convert", ORDERS / "test.jsonl", "--to", "nowhere"), 2, "parquet"),
    ],
)
def test_wrong_use(arguments: tuple[object, ...], code: int, message: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path, code=code)
    assert message in done.err and done.out == ""
    as_json = run(*arguments, "--json", cwd=tmp_path, code=code)
    assert json.loads(as_json.err)["exit_code"] == code and as_json.out == ""


def test_map(tmp_path: Path) -> None:
    report = json_of(
        "inspect", GOOD / "question_answer.jsonl", "--map", "prompt=question,completion=answer", cwd=tmp_path
    )
    assert report["kind"] == "completion"


@pytest.mark.slow
def test_rows_come_through_a_pipe_too(tmp_path: Path) -> None:
    """Also through one that the shell makes for `<(...)`; each is read once and used as often as needed."""
    orders = ORDERS / "validation.jsonl"
    for line in (
        f"cat '{orders}' | $O data check - --near --json",
        f"{sys.executable} -m orchestrate.cli data check <(gzip -c '{orders}') --json",  # not a fork
        f"$O data check - --json < '{orders}'",
    ):
        done = subprocess.run(
            ["bash", "-c", line.replace("$O", f"'{forking.python()}' -m orchestrate.cli")],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0 and json.loads(done.stdout)["report"]["files"][0]["rows"] == 100, (
            done.stderr
        )
    line = f"cat '{orders}' | '{forking.python()}' -m orchestrate.cli data dedupe -"
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    assert len((tmp_path / "data.deduped.jsonl").read_text().splitlines()) == 100


@pytest.mark.parametrize(
    ("model", "tokenizer"),
    [
        ("gpt-4o-mini", "o200k"),
        ("gpt-5", "o200k"),
        ("ft:gpt-4o-mini-2024-07-18:acme::abc", "o200k"),
        ("llama-3.3-70b-instruct", "llama-3~o200k"),
        ("accounts/fireworks/models/qwen3-8b", "qwen3~o200k"),
        ("Qwen/Qwen3-8B", "qwen3~o200k"),
    ],
)
def test_inspect_knows_models_by_all_their_names(tmp_path: Path, model: str, tokenizer: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n')
    report = json_of("inspect", file, "--model", model, cwd=tmp_path)
    assert report["tokenizer"] == tokenizer


@pytest.mark.slow
def test_a_column_is_read_left_out_or_told(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    check = ("check", file, "--for", "local")
    file.write_text('{"question": "Why?", "answer": "Because.", "article": "It rained all day."}\n')
    assert "article is not used" in run(*check, cwd=tmp_path, code=1).out
    run(*check, "--ignore", "article", "--strict", cwd=tmp_path)
    run(*check, "--map", "context=article", "--strict", cwd=tmp_path)
    file.write_text('{"question": "Why?", "answer": "Because.", "mood": "It was a glad one."}\n')
    assert "unread-column" in run(*check, cwd=tmp_path).out
    run(*check, "--strict", cwd=tmp_path, code=1)


def test_a_printed_option_is_quoted_where_a_column_has_spaces(cli: Any, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = [{"messages": said, "agent notes": "x", "ticket id": 1, "n": n} for n in range(12)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = cli("data", "check", "t.jsonl", "--json").json["report"]["problems"]
    [fix] = [one["fix"] for one in problems if one["code"] == "unread-column" and "agent notes" in one["fix"]]
    words = shlex.split(fix.partition("warning: ")[2])
    again = cli("data", "check", "t.jsonl", *words, "--json")
    assert not [one for one in again.json["report"]["problems"] if one["code"] == "unread-column"], words


def test_an_error_about_joined_results_names_the_users_file(cli: Any, tmp_path: Path) -> None:
    message = {"role": "assistant", "content": "Oslo."}
    answered = {"response": {"body": {"choices": [{"message": message, "finish_reason": "length"}]}}}
    (tmp_path / "asked.jsonl").write_text(
        json.dumps({"custom_id": "a", "body": {"messages": [{"role": "user", "content": "?"}]}}) + "\n"
    )
    (tmp_path / "results.jsonl").write_text(json.dumps({"custom_id": "a", **answered}) + "\n")
    done = cli("data", "convert", "results.jsonl", "--requests", "asked.jsonl", "--to", "openai")
    assert (
        done.code == 1 and "results.jsonl" in done.out + done.err and "batch.jsonl" not in done.out + done.err
    )
