"""A preview reads the tokenizer's files by itself, and shows what training by transformers' tokenizer has."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
from tests.paths import BUNDLED, TINY
from tests.unit.data.tokens.templates import each
from tests.unit.data.tokens.test_chat_templates import CHATS, TEMPLATES

from orchestrate.data.rows import ChatExample, ChatMessage, CompletionExample, TextExample
from orchestrate.data.tokens.hub_tokens import opened
from orchestrate.errors import DataError
from orchestrate.local.encoding import Template, encode
from orchestrate.local.model.loader import load_tokenizer


@pytest.fixture(scope="module")
def theirs() -> Any:
    return load_tokenizer(TINY)


@pytest.mark.parametrize("name", each(TEMPLATES))
def test_a_row_has_the_tokens_and_weights_of_training(theirs: Any, name: str) -> None:
    theirs.chat_template = TEMPLATES[name]
    mine, trained = Template(replace(opened(TINY), template=TEMPLATES[name])), Template(theirs)
    shown = 0
    for messages, tools in CHATS.values():
        row = ChatExample(messages=messages, tools=tools)
        try:
            expected = encode(row, trained)
        except DataError as refused:
            with pytest.raises(DataError, match=re.escape(str(refused))):
                encode(row, mine)
            continue
        shown += 1
        assert encode(row, mine) == expected
        assert mine.hub.decode(expected.ids) == theirs.decode(expected.ids)
    # Llama 3 names a token that the tiny model does not have.
    assert (shown or name == "llama3") and mine.special == trained.special


def test_other_rows_and_pieces_of_characters_too(theirs: Any) -> None:
    mine, trained = Template(opened(TINY)), Template(theirs)
    for row in (
        CompletionExample(prompt="Größe ", completion="日本"),
        TextExample(text="\U0001f600<|im_end|>"),
    ):
        expected = encode(row, trained)
        assert encode(row, mine) == expected
        for id in expected.ids:
            assert mine.hub.decode([id]) == theirs.decode([id])
    asked = [ChatMessage(role="user", content="?")]
    assert mine.said([5, 6], mine.asked(asked)) == trained.said([5, 6], trained.asked(asked))


@pytest.mark.slow
def test_neither_transformers_nor_torch_is_imported() -> None:
    file = BUNDLED / "orders" / "train.jsonl"
    code = (
        "import sys; from orchestrate.local.encoding.preview import read_preview\n"
        f"[row] = read_preview({str(file)!r}, {str(TINY)!r}, 1, 1, {{}}, {{}}).rows\n"
        "assert row.trained and not {'transformers', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
