"""Counts are those of tiktoken and of the hub tokenizer itself, token for token."""

from __future__ import annotations

import gzip
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.load
import tiktoken_ext.openai_public as public
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.paths import BUNDLED, FIXTURES

from orchestrate.data import Dataset
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    PreferenceExample,
    TextExample,
    UnpairedExample,
)
from orchestrate.data.tokens.counters import batch_counter, counter, display_name, for_model, names
from orchestrate.errors import SetupError, UsageError

TINY = BUNDLED / "tiny-chat"
ORDERS = BUNDLED / "orders" / "validation.jsonl"
GOOD = FIXTURES / "datasets" / "formats" / "good"
SHARED = ["You are a helpful assistant. " * 20, "Größe 日本 <|im_end|>", '{"type": "function"}', "", " ", "a"]
URL = "https://openaipublic.blob.core.windows.net/encodings/{}.tiktoken"


@pytest.fixture(scope="session", params=["o200k_base", "cl100k_base"])
def encoding(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tiktoken.Encoding:
    """tiktoken with its own pattern and merges; the merges come with the package bpe-openai, and tiktoken
    checks that they are the published ones."""
    name: str = request.param
    folder = tmp_path_factory.mktemp("tiktoken")
    package = find_spec("bpe_openai")
    assert package is not None and package.origin is not None
    packed = (Path(package.origin).parent / "data" / f"{name}.tiktoken.gz").read_bytes()
    (folder / hashlib.sha1(URL.format(name).encode()).hexdigest()).write_bytes(gzip.decompress(packed))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(folder))
        return tiktoken.Encoding(**getattr(public, name)())


@pytest.mark.slow
def test_text_counts_equal_tiktokens(encoding: tiktoken.Encoding, texts: list[str]) -> None:
    mine = batch_counter(encoding.name)(texts)
    theirs = [len(ids) for ids in encoding.encode_ordinary_batch(texts)]
    assert [(t, a, b) for t, a, b in zip(texts, mine, theirs, strict=True) if a != b] == []


@settings(max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=200)
)  # Cn: see the module's docstring
def test_any_text_counts_as_tiktoken_counts_it(encoding: tiktoken.Encoding, text: str) -> None:
    assert batch_counter(encoding.name)([text]) == [len(encoding.encode_ordinary(text))]


def _cookbook(messages: list[dict[str, str]], encoding: tiktoken.Encoding) -> int:
    """`num_tokens_from_messages` of OpenAI's cookbook."""
    total = 3
    for message in messages:
        total += 3
        for key, value in message.items():
            total += len(encoding.encode_ordinary(value)) + (1 if key == "name" else 0)
    return total


def test_chat_counts_equal_the_cookbooks(encoding: tiktoken.Encoding, texts: list[str]) -> None:
    sample = [t for t in texts if t.strip()][:400]
    examples = [
        ChatExample(
            messages=[
                ChatMessage(role="system", content=a),
                ChatMessage(role="user", content=b, name="eve"),
                ChatMessage(role="assistant", content=c),
            ]
        )
        for a, b, c in zip(sample[::3], sample[1::3], sample[2::3], strict=False)
    ]
    counted = counter(encoding.name.removesuffix("_base")).count(examples)
    plain = [
        [{"role": m.role, "content": m.text} | ({"name": m.name} if m.name else {}) for m in e.messages]
        for e in examples
    ]
    assert list(counted.tokens) == [_cookbook(messages, encoding) for messages in plain]
    assert list(counted.trained) == [len(encoding.encode_ordinary(e.messages[-1].text)) for e in examples]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(st.sampled_from(SHARED) | st.text(max_size=9), max_size=5), max_size=30))
def test_rows_that_share_texts_count_as_the_cookbook_counts_them(
    encoding: tiktoken.Encoding, rows: list[list[str]]
) -> None:
    plain = [[{"role": "user", "content": text} for text in row] for row in rows]
    examples = [
        ChatExample(messages=[ChatMessage(role="user", content=text) for text in row]) for row in rows
    ]
    counted = counter(encoding.name.removesuffix("_base")).count(examples)
    assert list(counted.tokens) == [_cookbook(messages, encoding) for messages in plain]


def test_weight_zero_is_not_trained() -> None:
    messages = [
        ChatMessage(role="user", content="a"),
        ChatMessage(role="assistant", content="one two three", weight=0),
        ChatMessage(role="user", content="b"),
        ChatMessage(role="assistant", content="four", weight=1),
    ]
    counted = counter("o200k").count([ChatExample(messages=messages)])
    assert counted.trained[0] == batch_counter("o200k_base")(["four"])[0]


def test_a_pair_is_two_sequences() -> None:
    data = Dataset.open(GOOD / "openai_preference.jsonl")
    count = data.tokens("o200k")
    assert len(count.lengths) == 2 * data.rows and sum(count.lengths) == count.tokens
    assert count.rows == data.rows


def test_plain_kinds_have_no_overhead() -> None:
    one = batch_counter("o200k_base")(["Hello there", "General"])
    counted = counter("o200k").count(
        [TextExample(text="Hello there"), CompletionExample(prompt="Hello there", completion="General")]
    )
    assert list(counted.tokens) == [one[0], sum(one)] and list(counted.trained) == [one[0], one[1]]


# -- a tokenizer of the hub
# ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tokenizer() -> object:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(TINY), local_files_only=True)


def test_hub_counts_equal_the_tokenizers_own(tokenizer: object, texts: list[str]) -> None:
    sample = [t for t in texts if t.strip()][:300]
    examples = [
        ChatExample(messages=[ChatMessage(role="user", content=a), ChatMessage(role="assistant", content=b)])
        for a, b in zip(sample[::2], sample[1::2], strict=True)
    ]
    counted = counter(f"hf:{TINY}").count(examples)
    for example, tokens, trained in zip(examples, counted.tokens, counted.trained, strict=True):
        encoded = tokenizer.apply_chat_template(  # type: ignore[attr-defined]
            [{"role": m.role, "content": m.content} for m in example.messages],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert (tokens, trained) == (len(encoded["input_ids"]), sum(encoded["assistant_masks"]))


@pytest.mark.parametrize(
    "file", [ORDERS, *sorted(f for f in GOOD.iterdir() if f.stem != "rft")], ids=lambda p: p.name
)
def test_hub_counts_equal_what_the_local_engine_trains(file: Path) -> None:
    """Of every kind of row that it trains on: tools and their calls, weights, reasoning, pairs."""
    from orchestrate.data.tokens.hub_tokens import load
    from orchestrate.local.encoding import Encoded, Template, encode, encode_answer, encode_pair

    data = Dataset.open(file)
    template = Template(load(TINY))
    rows = list(data.examples())[:50]
    encoded: list[Encoded] = []
    for row in rows:
        if isinstance(row, PreferenceExample):
            pair = encode_pair(row, template)
            encoded += [pair.preferred, pair.rejected]
        elif isinstance(row, UnpairedExample):
            encoded.append(encode_answer(row, template))
        else:
            encoded.append(encode(row, template))
    counted = counter(f"hf:{TINY}").count(rows)
    assert list(counted.tokens) == [len(e.ids) for e in encoded]
    assert list(counted.trained) == [sum(1 for w in e.weights if w) for e in encoded]


@pytest.mark.parametrize("ends", [{"bos_token": "<s>"}, {"bos_token": "<s>", "eos_token": None}])
def test_tokens_around_a_plain_text_are_counted_as_they_are_trained(
    tmp_path: Path, ends: dict[str, str | None]
) -> None:
    from transformers import AutoTokenizer

    from orchestrate.data.tokens.hub_tokens import load
    from orchestrate.local.encoding import Template, encode

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    tokenizer.add_special_tokens({name: text for name, text in ends.items() if text})
    for name, text in ends.items():
        setattr(tokenizer, name, text)
    tokenizer.save_pretrained(tmp_path)
    rows = [
        TextExample(text="To be, or not"),
        TextExample(text="<s>To be"),
        TextExample(text="To be, or not", loss_spans=[(0, 2)]),
        TextExample(text="To be, or not", loss_spans=[(3, 13)]),
        CompletionExample(prompt="To be,", completion=" or not"),
        CompletionExample(prompt="", completion="<|im_end|>"),
    ]
    template = Template(load(tmp_path))
    encoded = [encode(row, template) for row in rows]
    assert len(encoded[0].ids) - len(tokenizer.tokenize("To be, or not")) == 1 + ("eos_token" not in ends)
    counted = counter(f"hf:{tmp_path}").count(rows)
    assert list(counted.tokens) == [len(e.ids) for e in encoded]
    assert list(counted.trained) == [sum(1 for w in e.weights if w) for e in encoded]


def test_counts_go_by_the_chat_template_of_a_spec() -> None:
    """As transformers renders rows when it is handed both."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(TINY, local_files_only=True)
    own = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ '!' * loud }}{{ eos_token }}{% endfor %}"
        "{{ 'and so on' if more }}"
    )
    chat = {"chat_template": own, "chat_template_kwargs": {"loud": 3, "more": True}}
    name = for_model(folder=TINY, chat=chat)
    rows = [
        ChatExample(
            messages=[ChatMessage(role="user", content=a), ChatMessage(role="assistant", content="b")]
        )
        for a in ("one", "and two of it")
    ]
    expected = [
        len(
            tokenizer.apply_chat_template(
                [{"role": m.role, "content": m.content} for m in row.messages],
                chat_template=own,
                return_dict=True,
                loud=3,
                more=True,
            )["input_ids"]
        )
        for row in rows
    ]
    assert list(counter(name).count(rows).tokens) == expected
    assert list(counter(f"hf:{TINY}").count(rows).tokens) != expected
    assert display_name(name) == f"hf:{TINY.resolve()}" and name != for_model(folder=TINY)


# -- names
# -----------------------------------------------------------------------------------------------------


def test_resolution_prefers_the_models_own_tokenizer() -> None:
    assert for_model(folder=TINY) == f"hf:{TINY.resolve()}"
    assert for_model(tokenizer="o200k") == "o200k"
    assert for_model(tokenizer="qwen3.5", hub="Qwen/Qwen3.5-9B") == "qwen3.5"
    assert for_model(tokenizer="llama-3") == "llama-3~o200k"
    assert for_model() == "unknown~o200k"
    assert for_model(hub="not a hub id!") == "unknown~o200k"


@pytest.mark.parametrize("name", names())
def test_bundled_counters_count(name: str) -> None:
    count = Dataset.open(ORDERS).tokens(name)
    assert count.tokens > count.trained_tokens > 0 and count.longest == max(count.lengths)


def test_stand_in_says_so() -> None:
    exact, other = (Dataset.open(ORDERS).tokens(n) for n in ("o200k", "llama-3~o200k"))
    assert not exact.exact and exact.error_band == 3 * exact.rows / exact.tokens
    assert not other.exact and other.error_band > 0 and other.tokenizer == "llama-3~o200k"
    assert other.tokens == exact.tokens


def test_tools_make_a_count_inexact() -> None:
    count = Dataset.open(GOOD / "openai_tools.jsonl").tokens("o200k")
    assert not count.exact and count.error_band == pytest.approx(0.05)


def test_truncation() -> None:
    count = Dataset.open(ORDERS).tokens("o200k")
    assert count.truncated(None) == count.tokens == count.truncated(10_000)
    assert count.truncated(10) == 10 * count.rows


def test_unknown_names() -> None:
    with pytest.raises(UsageError, match="o200k"):
        counter("nothing")
    with pytest.raises(SetupError, match="no tokenizer"):
        counter("hf:/nowhere")
