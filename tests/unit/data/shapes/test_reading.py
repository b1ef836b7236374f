"""Every format and container is recognised and becomes the same canonical rows."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.paths import DATASETS
from tests.targets import to

from orchestrate.core.zstd import zstd
from orchestrate.data import Dataset
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    TextExample,
)
from orchestrate.data.rules import accepted
from orchestrate.errors import DataError
from orchestrate.types import Severity

GOOD = DATASETS / "formats" / "good"

FORMATS = {
    "openai_chat.jsonl": "openai-chat",
    "openai_tools.jsonl": "openai-chat",
    "openai_weights.jsonl": "openai-chat",
    "openai_images.jsonl": "openai-chat",
    "openai_developer.jsonl": "openai-chat",
    "openai_functions.jsonl": "openai-chat",
    "reasoning.jsonl": "openai-chat",
    "sharegpt.jsonl": "sharegpt",
    "sharegpt_tools.jsonl": "sharegpt",
    "sharegpt_hermes.jsonl": "sharegpt",
    "sharegpt_preference.jsonl": "sharegpt-preference",
    "alpaca.jsonl": "alpaca",
    "alpaca_preference.jsonl": "alpaca-preference",
    "prompt_completion.jsonl": "prompt-completion",
    "prompt_completion_chat.jsonl": "prompt-completion-chat",
    "question_answer.jsonl": "question-answer",
    "text.jsonl": "text",
    "openai_preference.jsonl": "openai-preference",
    "trl_preference.jsonl": "trl-preference",
    "trl_preference_chat.jsonl": "trl-preference",
    "trl_implicit.jsonl": "trl-preference-implicit",
    "anthropic_hh.jsonl": "anthropic-hh",
    "trl_unpaired.jsonl": "trl-unpaired",
    "trl_unpaired.csv": "trl-unpaired",
    "trl_unpaired_chat.jsonl": "trl-unpaired",
    "openai_unpaired.jsonl": "chat-unpaired",
    "sharegpt_unpaired.jsonl": "sharegpt-unpaired",
    "alpaca_unpaired.jsonl": "alpaca-unpaired",
    "rft.jsonl": "rft",
    "llamafactory_v1.jsonl": "openai-chat",
    "llamafactory_pair.jsonl": "llamafactory-pair",
    "llamafactory_images.jsonl": "openai-chat",
    "trl_images.jsonl": "openai-chat",
    "axolotl_parts.jsonl": "openai-chat",
    "axolotl_detail.jsonl": "sharegpt",
    "input_output.jsonl": "input-output-segments",
    "anthropic_tools.jsonl": "openai-chat",
    "gemini.jsonl": "gemini",
    "gemini_preference.jsonl": "gemini-preference",
    "bedrock.jsonl": "bedrock",
    "openai_stored.jsonl": "openai-stored",
    "openai_responses.jsonl": "openai-responses",
    "langsmith.jsonl": "langsmith",
    "langfuse.jsonl": "langfuse",
    "dolly.jsonl": "instruction-response",
    "openorca.jsonl": "question-response",
    "gpteacher.jsonl": "instruction-response",
    "ranked_answers.jsonl": "ranked-answers",
    "openai_text_calls.jsonl": "openai-chat",
    "openai_chat.json": "openai-chat",
    "prompt_completion.csv": "prompt-completion",
    "prompt_completion.tsv": "prompt-completion",
}


def rows(path: Path | str, **columns: str) -> list[Example]:
    return list(Dataset.open(path, columns=columns).examples())


def test_each_fixture_is_listed() -> None:
    assert {p.name for p in GOOD.iterdir()} == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_format_is_recognised_without_errors(name: str) -> None:
    data = Dataset.open(GOOD / name)
    assert data.format == FORMATS[name]
    assert [p for p in data.problems if p.code != "legacy-functions"] == []
    assert data.rows == len(list(data.examples())) > 0


@pytest.mark.parametrize(
    ("name", "same_as"),
    [
        ("sharegpt.jsonl", "openai_chat.jsonl"),
        ("openai_chat.json", "openai_chat.jsonl"),
        ("prompt_completion.csv", "prompt_completion.jsonl"),
        ("prompt_completion.tsv", "prompt_completion.jsonl"),
        ("trl_preference.jsonl", "openai_preference.jsonl"),
        ("trl_preference_chat.jsonl", "openai_preference.jsonl"),
        ("trl_implicit.jsonl", "openai_preference.jsonl"),
        ("anthropic_hh.jsonl", "openai_preference.jsonl"),
        ("alpaca_preference.jsonl", "openai_preference.jsonl"),
        ("sharegpt_preference.jsonl", "openai_preference.jsonl"),
        ("trl_unpaired_chat.jsonl", "trl_unpaired.jsonl"),
        ("trl_unpaired.csv", "trl_unpaired.jsonl"),
        ("openai_unpaired.jsonl", "trl_unpaired.jsonl"),
        ("sharegpt_unpaired.jsonl", "trl_unpaired.jsonl"),
        ("alpaca_unpaired.jsonl", "trl_unpaired.jsonl"),
    ],
)
def test_equal_content_has_one_digest_in_every_format(name: str, same_as: str) -> None:
    assert Dataset.open(GOOD / name).digest == Dataset.open(GOOD / same_as).digest


def test_other_content_has_another_digest(tmp_path: Path) -> None:
    text = (GOOD / "openai_chat.jsonl").read_text()
    changed = tmp_path / "changed.jsonl"
    changed.write_text(text.replace("Oslo.", "Bergen."))
    assert Dataset.open(changed).digest != Dataset.open(GOOD / "openai_chat.jsonl").digest


def test_sharegpt_tool_turns_become_calls_and_answers() -> None:
    example = rows(GOOD / "sharegpt_tools.jsonl")[0]
    assert isinstance(example, ChatExample)
    assert [m.role for m in example.messages] == ["user", "assistant", "tool", "assistant"]
    call = (example.messages[1].tool_calls or [])[0]
    assert call.function.name == "weather" and json.loads(call.function.arguments) == {"city": "Oslo"}
    assert example.messages[2].tool_call_id == call.id
    assert example.tools and example.tools[0]["function"]["name"] == "weather"


def test_calls_in_the_text_of_sharegpt_become_calls() -> None:
    first, second = rows(GOOD / "sharegpt_hermes.jsonl")
    assert first == rows(GOOD / "sharegpt_tools.jsonl")[0]
    assert isinstance(second, ChatExample)
    said = second.messages[1]
    assert said.content == "I look it up."
    calls = said.tool_calls or []
    assert [json.loads(c.function.arguments) for c in calls] == [{"city": "Oslo"}, {"city": "Bergen"}]
    answers = {m.tool_call_id: m.content for m in second.messages if m.role == "tool"}
    assert answers == {calls[0].id: "3 degrees", calls[1].id: "5 degrees"}


def test_calls_in_the_text_that_cannot_be_read_stay_text(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    odd = (
        "<tool_call>{oops}</tool_call>",
        "<tool_call>[1]</tool_call>",
        "<tool_call>{'name': 1j}</tool_call>",
        "<tool_call>",
    )
    talks = [[{"from": "human", "value": "a"}, {"from": "gpt", "value": text}] for text in odd]
    file.write_text("".join(json.dumps({"conversations": talk}) + "\n" for talk in talks))
    assert [e.messages[1].content for e in rows(file) if isinstance(e, ChatExample)] == list(odd)


def in_a_turn(call: str) -> dict[str, object]:
    return {"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": call}]}


def in_a_text(call: str) -> dict[str, object]:
    said = f"<tool_call>{call}</tool_call>"
    return {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": said}]}


def in_an_answer(call: str) -> dict[str, object]:
    answer, result = {"role": "assistant", "content": call}, {"role": "tool", "content": "here"}
    last = {"role": "assistant", "content": "b"}
    return {"messages": [{"role": "user", "content": "a"}, answer, result, last]}


def in_a_list_in_an_answer(call: str) -> dict[str, object]:
    return in_an_answer(f'{{"tool_calls": [{call}]}}')


def in_a_function_in_an_answer(call: str) -> dict[str, object]:
    return in_a_list_in_an_answer(f'{{"type": "function", "function": {call}}}')


def in_a_part(call: str) -> dict[str, object]:
    answer = {"role": "assistant", "content": [{"type": "tool_call", "value": call}]}
    return {"messages": [{"role": "user", "content": "a"}, answer]}


def in_a_column(call: str) -> dict[str, object]:
    return {"query": "a", "answers": f"[{call}]", "tools": [{"name": "track"}]}


def in_tool_calls(call: str) -> dict[str, object]:
    answer = {"role": "assistant", "tool_calls": [{"id": "c", "function": json.loads(call)}]}
    return {"messages": [{"role": "user", "content": "a"}, answer]}


WRITTEN = [
    in_a_turn,
    in_a_text,
    in_an_answer,
    in_a_list_in_an_answer,
    in_a_function_in_an_answer,
    in_a_part,
    in_a_column,
    in_tool_calls,
]


@pytest.mark.parametrize("name", ["parameters", "args", "input"])
@pytest.mark.parametrize("written", WRITTEN)
def test_a_call_has_its_arguments_under_any_usual_name(
    written: Callable[[str], dict[str, object]], name: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    call = {"name": "track", "arguments": None, name: {"order": 7756}}
    file.write_text(json.dumps(written(json.dumps(call))) + "\n")
    data = Dataset.open(file)
    (example,) = data.examples()
    assert isinstance(example, ChatExample)
    (call,) = example.messages[1].tool_calls or []
    assert json.loads(call.function.arguments) == {"order": 7756}
    assert "extra-fields" not in {p.code for p in data.problems}


@pytest.mark.parametrize("written", WRITTEN)
def test_other_fields_of_a_call_are_told(written: Callable[[str], dict[str, object]], tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    call = '{"name": "track", "arguments": {"order": 1}, "parameters": {"order": 2}, "thought": "Hm"}'
    file.write_text(json.dumps(written(call)) + "\n")
    data = Dataset.open(file)
    (example,) = data.examples()
    assert isinstance(example, ChatExample)
    (made,) = example.messages[1].tool_calls or []
    assert json.loads(made.function.arguments) == {"order": 1}
    (told,) = [p.message for p in data.problems if p.code == "extra-fields"]
    assert re.fullmatch(r"unused: (tool_calls\.(function\.)?(parameters|thought)(, )?){2}", told)


def test_fields_around_calls_in_an_answer_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    call = '{"id": "c", "type": "function", "function": {"name": "track", "arguments": {}}}'
    file.write_text(json.dumps(in_an_answer(f'{{"content": "I look.", "tool_calls": [{call}]}}')) + "\n")
    (told,) = [p.message for p in Dataset.open(file).problems if p.code == "extra-fields"]
    assert told == "unused: content.content, tool_calls.id"


def test_many_tags_take_no_longer_than_their_text(tmp_path: Path) -> None:
    """A pattern that backtracks would take hours; the test's time limit ends it."""
    file = tmp_path / "a.jsonl"
    text = "<tool_call> " * 300_000 + "</tool_call>"
    talk = [{"from": "human", "value": "a"}, {"from": "gpt", "value": text}]
    file.write_text(json.dumps({"conversations": talk}) + "\n")
    assert len(rows(file)) == 1


def test_answers_to_retired_calls_become_tool_messages() -> None:
    """Each call has an id of its own, and backends that know no function role take the row."""
    example = rows(GOOD / "openai_functions.jsonl")[1]
    assert isinstance(example, ChatExample)
    calls = [call for m in example.messages for call in m.tool_calls or ()]
    answers = {m.tool_call_id: m.content for m in example.messages if m.role == "tool"}
    assert answers == {calls[0].id: "3 degrees", calls[1].id: "5 degrees"}
    assert accepted(Dataset.open(GOOD / "openai_functions.jsonl"), to("together")) == 2


@pytest.mark.parametrize("column", ["instruction", "question", "query", "input", "context"])
def test_the_prompt_of_two_answers_is_never_guessed_beside_a_column_that_is_one(
    column: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({column: "How?", "chosen": "The good way", "rejected": "The bad way"}) + "\n")
    if column in ("instruction", "question"):
        (pair,) = rows(file)
        assert isinstance(pair, PreferenceExample) and pair.prompt[0].content == "How?"
        return
    with pytest.raises(DataError, match=column):
        Dataset.open(file)
    (pair,) = rows(file, prompt=column)
    assert isinstance(pair, PreferenceExample) and pair.preferred[0].content == "The good way"


def test_answers_that_share_no_beginning_have_no_prompt(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"chosen": "Blue it is.", "rejected": "Green it is."}\n')
    data = Dataset.open(file)
    assert data.rows == 0 and "--map prompt=" in data.problems[0].message


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"Question": "a", "Answer": "b"}, "question=Question,answer=Answer"),
        ({"input": "a", "output": "b"}, "question=input,answer=output"),
        ({"prompt": "a", "response": "b"}, "completion=response"),
        ({"query": "a", "chosen": "b", "rejected": "c"}, "prompt=query"),
        ({"conversation": [{"from": "human", "value": "a"}]}, "conversations=conversation"),
        ({"dialog": [{"role": "user", "content": "a"}]}, "messages=dialog"),
        ({"content": "a"}, "text=content"),
        ({"ticket_id": "7", "body": "a", "label": "b"}, "question=body,answer=label"),
        ({"review": "a", "sentiment": "b"}, "question=review,answer=sentiment"),
        ({"a": 1}, "prompt=COLUMN"),
    ],
)
def test_unknown_columns_are_answered_with_the_mapping_that_fits(
    row: dict[str, object], advice: str, tmp_path: Path
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError) as raised:
        Dataset.open(file)
    assert raised.value.fix == f"name the columns: --map {advice}" or "COLUMN" in advice
    if "COLUMN" not in advice:  # and it works
        Dataset.open(file, columns=dict(pair.split("=") for pair in advice.split(",")))


def test_rows_inside_an_object_are_pointed_at(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"data": [{"prompt": "a", "completion": "b"}]}))
    with pytest.raises(DataError) as raised:
        Dataset.open(file)
    assert ".data[]" in (raised.value.fix or "")


@pytest.mark.parametrize("cell", ["[3, 1, 2]", '{"a": 1}', '["a", "b"]'])
def test_json_in_a_cell_of_text_is_text(cell: str, tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    with file.open("w", newline="") as out:
        csv.writer(out).writerows([["instruction", "input", "output"], ["Sort", cell, cell]])
    assert [m.content for e in rows(file) if isinstance(e, ChatExample) for m in e.messages] == [
        f"Sort\n\n{cell}",
        cell,
    ]
    pairs = tmp_path / "b.csv"
    with pairs.open("w", newline="") as out:
        csv.writer(out).writerows([["prompt", "chosen", "rejected"], ["Sort", cell, "no"]])
    (pair,) = rows(pairs)
    assert isinstance(pair, PreferenceExample) and pair.preferred[0].content == cell


def test_retired_function_calls_become_tool_calls() -> None:
    example = rows(GOOD / "openai_functions.jsonl")[0]
    assert isinstance(example, ChatExample)
    assert (example.messages[-1].tool_calls or [])[0].function.name == "weather"
    assert example.tools and example.tools[0]["type"] == "function"


def test_alpaca_joins_input_and_unrolls_history() -> None:
    first, _, third = rows(GOOD / "alpaca.jsonl")
    assert isinstance(first, ChatExample) and isinstance(third, ChatExample)
    assert first.messages[0].content == "Translate into German.\n\ngood day"
    assert [m.role for m in third.messages] == ["system", "user", "assistant", "user", "assistant"]


def test_answers_inside_a_prompt_carry_no_loss() -> None:
    example = rows(GOOD / "prompt_completion_chat.jsonl")[0]
    assert isinstance(example, ChatExample)
    assert [m.weight for m in example.messages if m.role == "assistant"] == [0, None]


def test_reasoning_is_kept_under_its_other_names() -> None:
    example = rows(GOOD / "reasoning.jsonl")[0]
    assert isinstance(example, ChatExample) and example.messages[-1].reasoning == "Let me think."


def test_other_kinds() -> None:
    assert isinstance(rows(GOOD / "prompt_completion.jsonl")[0], CompletionExample)
    assert isinstance(rows(GOOD / "text.jsonl")[0], TextExample)
    pair = rows(GOOD / "trl_preference.jsonl")[0]
    assert isinstance(pair, PreferenceExample) and pair.preferred[0].content == "Oslo."
    task = rows(GOOD / "rft.jsonl")[0]
    assert isinstance(task, RLExample) and task.fields == {"reference": "Oslo."}


def test_columns_are_mapped() -> None:
    data = Dataset.open(
        GOOD / "question_answer.jsonl", columns={"prompt": "question", "completion": "answer"}
    )
    assert data.kind == "completion" and data.rows == 3
    assert [p for p in data.problems if p.code == "extra-fields"] == []


# -- containers ----------------------------------------------------------------------------------------------

PLAIN = GOOD / "openai_chat.jsonl"


def _gz(folder: Path) -> Path:
    file = folder / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(PLAIN.read_bytes()))
    return file


def _zst(folder: Path) -> Path:
    file = folder / "rows.jsonl.zst"
    file.write_bytes(zstd.compress(PLAIN.read_bytes()))
    return file


def _bom_crlf(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + PLAIN.read_bytes().replace(b"\n", b"\r\n"))
    return file


def _utf16(folder: Path) -> Path:
    file = folder / "rows.jsonl"
    file.write_text(PLAIN.read_text(), encoding="utf-16")
    return file


def _pretty_objects(folder: Path) -> Path:
    file = folder / "rows.json"
    file.write_text(
        "\n".join(json.dumps(json.loads(line), indent=1) for line in PLAIN.read_text().splitlines())
    )
    return file


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in PLAIN.read_text().splitlines()]), file)
    return file


def _arrow_stream_folder(folder: Path) -> Path:
    """What `datasets.Dataset.save_to_disk` leaves."""
    import pyarrow as pa

    saved = folder / "saved"
    saved.mkdir()
    table = pa.Table.from_pylist([json.loads(line) for line in PLAIN.read_text().splitlines()])
    with (
        pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as out,
    ):
        out.write_table(table)
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    (saved / "dataset_info.json").write_text("{}")
    return saved


def _shards(folder: Path) -> Path:
    lines = PLAIN.read_text().splitlines(keepends=True)
    shards = folder / "shards"
    shards.mkdir()
    (shards / "train-00000-of-00002.jsonl").write_text(lines[0])
    (shards / "train-00001-of-00002.jsonl.gz").write_bytes(gzip.compress("".join(lines[1:]).encode()))
    return shards


def _json_in_csv(folder: Path) -> Path:
    import csv

    file = folder / "rows.csv"
    with file.open("w", newline="") as opened:
        out = csv.writer(opened)
        out.writerow(["messages"])
        out.writerows([json.dumps(json.loads(line)["messages"])] for line in PLAIN.read_text().splitlines())
    return file


@pytest.mark.parametrize(
    "make",
    [
        _gz,
        _zst,
        _bom_crlf,
        _utf16,
        _pretty_objects,
        _parquet,
        _arrow_stream_folder,
        _shards,
        _json_in_csv,
    ],
)
def test_container_holds_the_same_rows(make: Callable[[Path], Path], tmp_path: Path) -> None:
    file = make(tmp_path)
    assert Dataset.open(file).digest == Dataset.open(PLAIN).digest


def test_url(tmp_path: Path) -> None:
    assert Dataset.open(f"file://{PLAIN}").digest == Dataset.open(PLAIN).digest


def test_txt_is_a_text_a_line(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"one\n\ntwo\r\n \n    return 3\t\n10%\r100%\n")
    assert rows(file) == [TextExample(text=t) for t in ("one", "two", "    return 3\t", "10%\r100%")]


def test_json_array_larger_than_a_block(tmp_path: Path) -> None:
    file = tmp_path / "big.json"
    items = [{"prompt": f"{i}", "completion": "x" * 5000} for i in range(700)]
    file.write_text(json.dumps(items, indent=1))
    read = rows(file)
    assert len(read) == 700 and read[699] == CompletionExample(prompt="699", completion="x" * 5000)


def test_changed_file_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "a"}\n'))
    assert Dataset.open(file).rows == 1
    file.write_bytes(gzip.compress(b'{"text": "a"}\n{"text": "b"}\n'))
    assert Dataset.open(file).rows == 2


def test_a_saved_dataset_with_one_split_is_that_split(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "dataset_info.json").write_text("{}")
    (tmp_path / "train" / "rows.jsonl").write_text('{"text": "a"}\n')
    assert len(rows(tmp_path)) == 1
    (tmp_path / "test").mkdir()
    with pytest.raises(DataError, match="several splits: test, train"):
        rows(tmp_path)


def _csv(folder: Path, column: str, cells: list[str]) -> Path:
    import csv

    file = folder / "rows.csv"
    with file.open("w", newline="") as opened:
        csv.writer(opened).writerows([[column], *([cell] for cell in cells)])
    return file


def test_cells_as_python_writes_them_are_read_and_told(tmp_path: Path) -> None:
    """As pandas' `to_csv` leaves a column of lists behind."""
    rows = [
        [
            {"role": "user", "content": 'it\'s "so"\n'},
            {"role": "assistant", "content": "\u00fc", "weight": 1},
        ],
        [
            {"role": "user", "content": "q", "name": None},
            {"role": "assistant", "content": "True"},
        ],
    ]
    as_python = Dataset.open(_csv(tmp_path, "messages", [repr(row) for row in rows]))
    [told] = [p for p in as_python.problems if p.code == "python-cells"]
    assert (told.severity, as_python.rows) == (Severity.INFO, 2) and told.message.startswith("2 cells")
    as_json = Dataset.open(_csv(tmp_path, "messages", [json.dumps(row) for row in rows]))
    assert as_json.digest == as_python.digest
    assert "python-cells" not in {p.code for p in as_json.problems}
    report = check(
        {"train": str(_csv(tmp_path, "messages", [repr(row) for row in rows]))}, CheckOptions(hosts=())
    )
    assert report.files[0].counts["python-cells"] == 2 and report.ok


@pytest.mark.parametrize(
    "cell",
    [
        "[('user', 'a'), ('assistant', 'b')]",
        "[{'role': 'user', 'content': 'a'}\n {'role': 'assistant', 'content': 'b'}]",  # numpy's
        "[{'role': 'user', 'content': 'a'}, ...]",
        "[{'role': 'user', 'content': array(['a'])}]",
        "[{'role': 'user', 'content': b'a'}]",
        "[{'role': 'user', 'content': 'a', 1: 2}]",
        "[{'role': 'user', 'content': '\\ud83d'}]",
        "[{'role': 'user', 'content': 1e999}]",
        "[{'role': 'user', 'content': __import__('os').getcwd()}]",
        "[" * 300 + "]" * 300,
    ],
)
def test_a_cell_that_is_not_exactly_pythons_stays_a_text(cell: str, tmp_path: Path) -> None:
    good = repr([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    report = check({"train": str(_csv(tmp_path, "messages", [good, good, cell]))}, CheckOptions(hosts=()))
    assert not report.ok and report.files[0].rows == 2
    assert report.files[0].counts["python-cells"] == 2


def test_an_answer_that_looks_like_python_is_an_answer(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("instruction,input,output\nsum,\"[{'a': 1}]\",\"[{'b': 2}]\"\n")
    [example] = Dataset.open(file).examples()
    assert isinstance(example, ChatExample)
    assert [m.text for m in example.messages] == ["sum\n\n[{'a': 1}]", "[{'b': 2}]"]


def test_cells_of_packed_shards_are_told_too(tmp_path: Path) -> None:
    cell = repr([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    content = _csv(tmp_path, "messages", [cell, cell]).read_bytes()
    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "a.csv").write_bytes(content)
    (shards / "b.csv.gz").write_bytes(gzip.compress(content))
    data = Dataset.open(shards)
    assert data.rows == 4
    assert next(p for p in data.problems if p.code == "python-cells").message.startswith("4 cells")
