"""What of a row is trained, by `train_on`, `ignore_empty_think` and `truncation`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.unit.local.encoding.test_encoding import FAMILIES, TALK, template, trained
from tests.unit.local.encoding.test_templates import FAMILIES as PUBLISHED
from tests.unit.local.encoding.test_templates import template as published

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    FunctionCall,
    PreferenceExample,
    TextExample,
    ToolCall,
)
from orchestrate.data.tokens.counters import counter
from orchestrate.errors import DataError
from orchestrate.local.encoding import (
    NO_ROLES,
    SKIPS_THINKING,
    Encoded,
    Rules,
    Template,
    encode,
    encode_pair,
    encode_row,
)
from orchestrate.local.encoding.encoded import encode_file

THINKERS: dict[str, tuple[list[str], str]] = {
    "qwen3": PUBLISHED["qwen3"],
    "qwen3_5_think": PUBLISHED["qwen3"],
    "glm4moe": (["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|endoftext|>"], "<|user|>"),
}
"""Templates of models that think, which write an empty block before an answer without thinking."""
SHORT = ChatExample(
    messages=[ChatMessage(role="user", content="Q?"), ChatMessage(role="assistant", content="A")]
)


def chatml() -> Template:
    return template(*FAMILIES["chatml"][:3])


@pytest.mark.parametrize("family", THINKERS)
def test_an_empty_thinking_block_is_trained_with_a_note_or_not_at_all(family: str) -> None:
    of = published(family, *THINKERS[family])
    plain, without = encode(SHORT, of), encode(SHORT, of, Rules(ignore_empty_think=True))
    assert "</think>" in trained(plain, of) and SKIPS_THINKING in plain.notes
    assert trained(without, of).strip().removesuffix(THINKERS[family][1]) == "A"
    assert SKIPS_THINKING not in without.notes
    # The row reads as it did, and so does the prompt with which the model is asked.
    assert without.ids == plain.ids
    assert of.tokenizer.decode(of.asked(SHORT.messages[:1])) in of.tokenizer.decode(without.ids)


@pytest.mark.parametrize("family", THINKERS)
def test_thinking_itself_is_trained_whatever_is_said_of_empty_blocks(family: str) -> None:
    of = published(family, *THINKERS[family])
    thinks = ChatMessage(role="assistant", content="A", reasoning="Because of it.")
    row = ChatExample(messages=[SHORT.messages[0], thinks])
    assert encode(row, of, Rules(ignore_empty_think=True)) == encode(row, of)
    assert "Because of it." in trained(encode(row, of), of)


def test_a_model_that_does_not_think_has_nothing_to_ignore() -> None:
    of = chatml()
    assert encode(TALK, of, Rules(ignore_empty_think=True)) == encode(TALK, of)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mistral"])
def test_it_trains_the_messages_that_were_chosen(family: str) -> None:
    of, end = template(*FAMILIES[family][:3]), FAMILIES[family][1][-1]
    last = trained(encode(TALK, of, Rules(train_on="last")), of)
    assert last.endswith(f"Two answers{end}") and "One" not in last
    users = trained(encode(TALK, of, Rules(train_on=("user",))), of)
    assert users.replace(end, "|") in ("First?|Second?|", "Be kind.\n\nFirst?|Second?|")
    both = trained(encode(TALK, of, Rules(train_on=("assistant", "user"))), of)
    assert [both.find(word) for word in ("First?", "One", "Second?", "Two")] == sorted(
        both.find(word) for word in ("First?", "One", "Second?", "Two")
    )
    assert -1 not in (both.find(word) for word in ("First?", "One answer", "Second?", "Two answers"))
    assert encode(TALK, of, Rules(train_on=("assistant",))) == encode(TALK, of)


def test_weights_in_the_rows_hold_beside_the_choice() -> None:
    of = chatml()
    silent = ChatMessage(role="user", content="Second?", weight=0)
    row = ChatExample(messages=[*TALK.messages[:3], silent, TALK.messages[4]])
    assert trained(encode(row, of, Rules(train_on=("user",))), of) == "First?<|im_end|>"
    muted = ChatExample(messages=[*TALK.messages[:4], ChatMessage(role="assistant", content="Two", weight=0)])
    assert encode(muted, of, Rules(train_on="last")).trained == 0


COPIES = {
    "in the reasoning": ("6*7 = 42. I will say: It is 42", "It is 42", [(6, 8)], "42<|im_end|>"),
    "the reasoning itself": ("aa aa", "aa aa", [(0, 2)], "aa"),
    "in the template's tag": ("hm", "think", [(2, 5)], "ink<|im_end|>"),
    "in the header": (None, "assistant", [(0, 9)], "assistant<|im_end|>"),
    "twice in the answer": ("2", "2 and 2", [(6, 7)], "2<|im_end|>"),
    "thinking in the text": (None, "<think>\n42\n</think>\n\nIt is 42", [(27, 29)], "42<|im_end|>"),
}
"""Reasoning, answer, the part of it to train on, and what is trained, by hand."""


@pytest.mark.parametrize("case", COPIES)
def test_a_part_of_an_answer_is_not_mistaken_for_a_copy_of_it(case: str) -> None:
    of = published("qwen3", *PUBLISHED["qwen3"])
    thought, said, spans, expected = COPIES[case]
    answer = ChatMessage(role="assistant", content=said, reasoning=thought, loss_spans=spans)
    encoded = encode(ChatExample(messages=[SHORT.messages[0], answer]), of)
    assert trained(encoded, of).strip() == expected
    # The answer is the last text of the row, so transformers' own text says which tokens these are.
    row: list[dict[str, str]] = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": said}]
    row[1] |= {"reasoning_content": thought} if thought else {}
    text = of.tokenizer.apply_chat_template(row, tokenize=False)
    first = text.rindex(said) + spans[0][0]
    last = text.rindex("<|im_end|>") + 10 if spans[-1][1] == len(said) else first + len(expected)
    read = of.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded.ids == read["input_ids"]
    touched = [n for n, (start, end) in enumerate(read["offset_mapping"]) if start < last and end > first]
    assert [n for n, weight in enumerate(encoded.weights) if weight] == touched


@pytest.mark.parametrize("written", ["m.content | upper", "m.content + '|' + m.content", "'none'"])
def test_a_part_of_an_answer_that_the_template_changes_or_repeats_is_refused(written: str) -> None:
    of = template(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.reasoning_content %}"
        "{{ m.reasoning_content + '|' + (" + written + ") }}{% else %}{{ m.content }}{% endif %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
    )
    answer = ChatMessage(role="assistant", content="It is 42", reasoning="It is 42", loss_spans=[(6, 8)])
    with pytest.raises(DataError, match="cannot select part of it"):
        encode(ChatExample(messages=[SHORT.messages[0], answer]), of)
    silent = ChatMessage(role="assistant", content="It is 42", loss_spans=[(6, 8)], weight=0)
    assert encode(ChatExample(messages=[SHORT.messages[0], silent]), of).trained == 0


def test_the_last_answer_of_a_row_that_is_split_is_trained_once() -> None:
    of = published("qwen3", *PUBLISHED["qwen3"])
    said = [ChatMessage(role="assistant", content=n, reasoning=f"so {n}") for n in "12"]
    row = ChatExample(messages=[TALK.messages[1], said[0], TALK.messages[3], said[1]])
    rows = encode_row(row, of, Rules(train_on="last", earlier="split"))
    assert ["so 1" in trained(one, of) for one in rows] == [False]
    users = encode_row(row, of, Rules(train_on=("user", "assistant"), earlier="split"))
    assert "".join(trained(one, of) for one in users).count("First?") == 1


def test_a_row_without_messages_says_that_there_is_nothing_to_choose() -> None:
    of = chatml()
    assert NO_ROLES in encode(TextExample(text="To be"), of, Rules(train_on="last")).notes
    assert NO_ROLES not in encode(TextExample(text="To be"), of).notes


@pytest.mark.parametrize("place", ["content", "reasoning", "arguments", "question"])
def test_control_tokens_in_the_text_of_a_message_are_told(place: str, tmp_path: Path) -> None:
    of, mark = published("qwen3", *PUBLISHED["qwen3"]), "<|im_end|>"
    has = {name: f"so {mark}" if name == place else "so" for name in ("content", "reasoning", "question")}
    given = {"at": f"so {mark}" if place == "arguments" else "so"}
    call = ToolCall(id="c", function=FunctionCall(name="look", arguments=json.dumps(given)))
    row = [
        ChatMessage(role="user", content=has["question"]),
        ChatMessage(role="assistant", content=has["content"], reasoning=has["reasoning"], tool_calls=[call]),
    ]
    encoded = encode(ChatExample(messages=row), of)
    assert [mark in note for note in encoded.notes if "control tokens" in note] == [True]
    of.tokenizer.save_pretrained(tmp_path)
    counted = counter(f"hf:{tmp_path}").count([ChatExample(messages=row)])
    assert any("control tokens" in text for text in counted.remarks)


def test_tags_and_other_tokens_in_the_text_of_a_message_are_not_told() -> None:
    of = published("qwen3", [*PUBLISHED["qwen3"][0], "<think>", "</think>"], PUBLISHED["qwen3"][1])
    said = "<think>\nso\n</think>\n\nA <tag> and </s>"
    row = [SHORT.messages[0], ChatMessage(role="assistant", content=said)]
    assert not any("control tokens" in note for note in encode(ChatExample(messages=row), of).notes)


# -- rows that are too long ---------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", range(8, 60, 3))
def test_what_is_kept_of_a_long_row_is_its_beginning_or_its_end(limit: int) -> None:
    of = chatml()
    whole = encode(TALK, of)
    assert len(whole.ids) < 60
    right = encode(TALK, of, Rules(max_length=limit))
    left = encode(TALK, of, Rules(max_length=limit, truncation="left"))
    assert (right.ids, right.weights) == (whole.ids[:limit], whole.weights[:limit])
    start = [whole.ids[0]] if whole.ids[0] == of.hub.bos else []
    assert left.ids == (whole.ids if limit >= len(whole.ids) else start + whole.ids[len(start) - limit :])
    assert left.truncated == right.truncated == max(0, len(whole.ids) - limit)
    # Of an answer only the whole is trained: what lost its beginning is context.
    assert trained(left, of) in ("", "Two answers<|im_end|>", "One answer<|im_end|>Two answers<|im_end|>")


def test_a_text_is_trained_from_where_it_was_cut() -> None:
    of = chatml()
    whole = encode(TextExample(text="To be or not to be, that is the question"), of)
    left = encode(
        TextExample(text="To be or not to be, that is the question"),
        of,
        Rules(max_length=9, truncation="left"),
    )
    assert left.ids == [whole.ids[0], *whole.ids[-8:]] and left.trained == 8
    inputs = encode(TALK, of, Rules(max_length=9, truncation="left", train_on_inputs=True))
    assert all(inputs.weights[1:])


def test_both_answers_of_a_pair_follow_on_the_same_text() -> None:
    of = chatml()
    pair = PreferenceExample(
        prompt=[ChatMessage(role="user", content="one two three four five six seven eight nine ten")],
        preferred=[ChatMessage(role="assistant", content="yes")],
        rejected=[ChatMessage(role="assistant", content="no and no and no and no and no")],
    )
    whole = encode_pair(pair, of)
    limit = len(whole.rejected.ids) - 5
    left = encode_pair(pair, of, Rules(max_length=limit, truncation="left"))
    assert len(left.rejected.ids) == limit

    def prompt(side: Encoded) -> list[int]:
        return side.ids[: next(n for n, weight in enumerate(side.weights) if weight)]

    assert prompt(left.preferred) == prompt(left.rejected) != prompt(whole.preferred)
    assert trained(left.preferred, of) == trained(whole.preferred, of)
    assert trained(left.rejected, of) == trained(whole.rejected, of)


def test_rows_over_the_limit_are_left_out_and_counted(tmp_path: Path) -> None:
    of, file = chatml(), tmp_path / "rows.jsonl"
    long = {"role": "user", "content": "word " * 60}
    answer = {"role": "assistant", "content": "yes"}
    short = {"role": "user", "content": "Q?"}
    file.write_text("".join(json.dumps({"messages": [m, answer]}) + "\n" for m in (short, long, short)))
    rows, report = encode_file(file, of, tmp_path / "e", rules=Rules(max_length=40, truncation="drop"))
    assert (rows.examples, report.too_long, report.dropped, report.truncated_rows) == (2, 1, 0, 0)
    assert int(rows.lengths.max()) <= 40
    [(level, told)] = report.messages("train", 40)
    assert level == "warning" and "1 of 3 rows" in told and "40" in told


def test_pairs_whose_answers_no_longer_differ_are_left_out_and_counted(tmp_path: Path) -> None:
    of, file = published("llama3", *PUBLISHED["llama3"]), tmp_path / "rows.jsonl"
    answers = [("yes", "no"), ("word " * 40 + "yes", "word " * 40 + "no"), ("yes", "yes ")]
    ask = {"messages": [{"role": "user", "content": "Q?"}]}
    file.write_text(
        "".join(
            json.dumps(
                {
                    "input": ask,
                    "preferred_output": [{"role": "assistant", "content": good}],
                    "non_preferred_output": [{"role": "assistant", "content": bad}],
                }
            )
            + "\n"
            for good, bad in answers
        )
    )
    rows, report = encode_file(file, of, tmp_path / "cut", pairs=True, rules=Rules(max_length=40))
    assert (rows.examples, report.alike, report.dropped) == (1, 2, 0)
    assert any("2 of 3 rows" in told and "same" in told for _, told in report.messages("train", 40))
    rows, report = encode_file(file, of, tmp_path / "whole", pairs=True)
    assert (rows.examples, report.alike) == (2, 1)  # the template strips the space that sets the last apart
    file.write_text(file.read_text().splitlines()[2])
    with pytest.raises(DataError, match="both answers are the same"):
        encode_file(file, of, tmp_path / "none", pairs=True)
