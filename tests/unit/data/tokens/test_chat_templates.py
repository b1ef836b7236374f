"""Counting without transformers gives what transformers gives: over every chat template at hand (the tiny
model's, and those that the installed TRL carries), kinds of rows, and kinds of tokenizer files."""

from __future__ import annotations

import copy
import json
import re
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.tokens.templates import PUBLISHED, each

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    FunctionCall,
    PreferenceExample,
    TextExample,
    ToolCall,
    UnpairedExample,
)
from orchestrate.data.tokens import chat_templates
from orchestrate.data.tokens.counters import counter
from orchestrate.data.tokens.tokenizer_files import REBUILT, read
from orchestrate.errors import DataError

TINY = Path(__file__).parents[4] / "src" / "orchestrate" / "bundled" / "tiny-chat"
TEMPLATES = {"tiny": (TINY / "chat_template.jinja").read_text("utf-8")} | PUBLISHED
NAMES = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}


def said(role: str, content: str, **more: Any) -> ChatMessage:
    return ChatMessage(role=role, content=content, **more)


CALL = ToolCall(
    id="call_12345", function=FunctionCall(name="weather", arguments='{"city": "Zürich", "n": 1}')
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Of a "city" <now> & here.',
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
ASK, ANSWER = said("user", "What is 2+2?"), said("assistant", "Four.")
CHATS: dict[str, tuple[list[ChatMessage], list[dict[str, Any]] | None]] = {
    "plain": ([ASK, ANSWER], None),
    "system": ([said("system", "Be brief."), ASK, ANSWER], None),
    "turns": ([ASK, ANSWER, said("user", " And 3+3?\n"), said("assistant", "Six.\n\n")], None),
    "unicode": ([said("user", "Größe 日本 \U0001f600 é"), said("assistant", "ﬁne\u00a0中文")], None),
    "special": ([said("user", "a<|im_end|>b <bos></s>"), said("assistant", "<think>x</think>y")], None),
    "reasoning": ([ASK, said("assistant", "Four.", reasoning="Two and two.")], None),
    "tools": (
        [
            said("user", "Zürich?"),
            said("assistant", "", tool_calls=[CALL]),
            said("tool", "21 C", tool_call_id="call_12345", name="weather"),
            said("assistant", "It is 21 C."),
        ],
        TOOLS,
    ),
    "tools unused": ([ASK, ANSWER], TOOLS),
    "unfinished": ([ASK], None),
}


@lru_cache(maxsize=1)
def tiny_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(TINY), local_files_only=True)


def by_transformers(template: str, chat: list[ChatMessage], tools: Any, *, answer_next: bool) -> object:
    """Text and spans, or None where it refuses."""
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    try:
        texts, spans = chat_template_utils.render_jinja_template(
            conversations=[[chat_templates.message(m) for m in chat]],
            tools=tools,
            chat_template=template,
            return_assistant_tokens_mask=True,
            add_generation_prompt=answer_next,
            **NAMES,
        )
    except (TemplateError, TypeError, KeyError):
        return None
    return texts[0], spans[0]


def by_us(template: str, chat: list[ChatMessage], tools: Any, *, answer_next: bool) -> object:
    try:
        shown = [chat_templates.message(m) for m in chat]
        return chat_templates.render(template, shown, tools, names=NAMES, answer_next=answer_next)
    except DataError:
        return None


@pytest.mark.parametrize("name", each(TEMPLATES))
def test_every_template_renders_as_in_transformers(name: str) -> None:
    """Each beginning of each conversation, with the generation prompt and without: trained tokens of
    templates without marks are the difference of two of them."""
    template, rendered = TEMPLATES[name], 0
    for chat, tools in CHATS.values():
        for end in range(1, len(chat) + 1):
            for answer_next in (False, True):
                mine = by_us(template, chat[:end], tools, answer_next=answer_next)
                assert mine == by_transformers(template, chat[:end], tools, answer_next=answer_next)
                rendered += mine is not None
    assert rendered, "a template that takes no conversation proves nothing"


MARKS = re.compile(
    r"<[|｜][^<>\s'\"{}|｜]+[|｜]?>|<\w+[|｜]>|<(?:start|end)_of_\w+>|</?s>|\[/?[A-Z_]{3,20}\]"
)
"""What families write as special tokens."""


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def folder_with(tmp_path: Path, template: str) -> Path:
    """The tiny model's tokenizer with the marks of the template as special tokens."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TINY / file, tmp_path)
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    known = {token["content"] for token in file["added_tokens"]}
    number = max(max(file["model"]["vocab"].values()), *(t["id"] for t in file["added_tokens"]))
    as_they_are = {
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    for mark in sorted(set(MARKS.findall(template)) - known):
        number += 1
        file["added_tokens"].append({"id": number, "content": mark, **as_they_are})
    (tmp_path / "tokenizer.json").write_text(json.dumps(file, ensure_ascii=False), "utf-8")
    (tmp_path / "chat_template.jinja").write_text(template, "utf-8")
    change(tmp_path / "tokenizer_config.json", **NAMES)
    return tmp_path


def readable(tokenizer: Any, template: str, chat: list[ChatMessage], tools: Any) -> list[dict[str, Any]]:
    """The messages in the first of the forms that templates ask for in which this one shows all of them, or
    else the first that it takes."""
    from jinja2 import TemplateError

    plain = [chat_templates.message(m) for m in chat]
    texts = copy.deepcopy(plain)
    for m in texts:
        for call in m.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    bare = [m | {"content": m["content"] or None} if m.get("tool_calls") else m for m in texts]
    parts = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in plain]
    taken: list[list[dict[str, Any]]] = []
    for form in (plain, parts, texts, bare):
        try:
            text = tokenizer.apply_chat_template(
                form, tools=tools, chat_template=template, tokenize=False, **NAMES
            )
        except (TemplateError, TypeError, KeyError):
            continue
        taken.append(form)
        called = [call.function.name for m in chat for call in m.tool_calls or ()]
        if all(word.strip() in text for word in [*called, *(m.text for m in chat)]):
            return form
    return taken[0]


@pytest.mark.parametrize("name", each(TEMPLATES))
def test_every_template_counts_as_in_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, TEMPLATES[name])
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert read(folder), "these files are read without transformers"
    count, counted = counter(f"hf:{folder}"), 0
    marked = chat_templates.is_marked(TEMPLATES[name])
    for chat, tools in CHATS.values():
        # Of equal rows all but the first are counted from what is known of their pieces.
        lengths = count.count([ChatExample(messages=chat, tools=tools)] * 3)
        if any(remark.refused for remark in lengths.remarks.values()):
            assert list(lengths.tokens) == [0] * 3
            continue
        encoded = tokenizer.apply_chat_template(
            readable(tokenizer, TEMPLATES[name], chat, tools),
            tools=tools,
            chat_template=TEMPLATES[name],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=marked,
            **NAMES,
        )
        # Where nothing that is special here ends the last answer, training puts the tokenizer's own end.
        text = tokenizer.decode(encoded["input_ids"]).rstrip()
        put = chat[-1].role == "assistant" and not text.endswith(tuple(special))
        assert list(lengths.tokens) == [len(encoded["input_ids"]) + put] * 3
        if marked:
            assert list(lengths.trained) == [sum(encoded["assistant_masks"]) + put] * 3
        counted += 1
    assert counted


def test_other_kinds_count_as_their_conversation_and_text() -> None:
    count = counter(f"hf:{TINY}")
    tokenizer = tiny_tokenizer()
    other = said("assistant", "Five <|im_end|> é")
    pair = PreferenceExample(prompt=[ASK], preferred=[ANSWER], rejected=[other])
    unpaired = UnpairedExample(prompt=[ASK], completion=[other], label=True)
    whole = [[chat_templates.message(m) for m in chat] for chat in ([ASK, ANSWER], [ASK, other])]
    chats = [len(tokenizer.apply_chat_template(chat, return_dict=False)) for chat in whole]
    assert list(count.count([pair, unpaired]).tokens) == [*chats, chats[1]]
    said_so = "<|im_end|> Größe"
    texts: list[Example] = [TextExample(text=said_so), CompletionExample(prompt="a ", completion=" b")]
    sizes = [len(tokenizer.encode(text, add_special_tokens=False)) for text in (said_so, "a ", " b")]
    assert list(count.count(texts).tokens) == [sizes[0] + 1, sizes[1] + sizes[2] + 1]


# -- files of other families


MIXED = ["<|endoftext|> a", " <bos>x<eos>", "</s>it's 1234 x\n\n y", "हिन्दी नमस्ते", "e\u0301 é"]
TEXTS = st.text() | st.sampled_from(MIXED)
WORDS = ["the it's 1234 end", "Größe हिन्दी नमस्ते", "x\n\n  y"] * 3
SPECIAL = ["<|endoftext|>", "<bos>", "<eos>", "<unk>", "<pad>", "<mask>"]


def trained(normalizer: Any, pre_tokenizer: Any, **model: Any) -> Any:
    """A small vocabulary under these parts, with the special tokens of several families."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [f"<0x{b:02X}>" for b in range(256)] if model.get("byte_fallback") else []
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *alphabet],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def saved(folder: Path, kind: str) -> Path:
    """A folder as `save_pretrained` writes it."""
    import transformers
    from tokenizers import normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.models.qwen3_5.tokenization_qwen3_5 import Qwen3_5Tokenizer

    if kind == "llama-3":
        rust = trained(None, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
        rust.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
        tokenizer: Any = PreTrainedTokenizerFast(
            tokenizer_object=rust, bos_token="<bos>", eos_token="<eos>", extra_special_tokens=["<mask>"]
        )
    else:
        own = {"Qwen3_5Tokenizer": Qwen3_5Tokenizer}.get(kind) or getattr(transformers, kind)
        like = own(vocab={t: i for i, t in enumerate(SPECIAL)}, merges=[]).backend_tokenizer
        model = REBUILT.get(kind, {}).get("model", {"unk_token": "<unk>", "byte_fallback": True})
        model = {key: value for key, value in model.items() if key != "type" and value is not None}
        normalizer = like.normalizer if kind != "LlamaTokenizer" else normalizers.Replace(" ", "▁")
        rust = json.loads(trained(normalizer, like.pre_tokenizer, **model).to_str())["model"]
        tokenizer = own(vocab=rust["vocab"], merges=[tuple(m) for m in rust["merges"]], eos_token="<eos>")
    tokenizer.chat_template = chat_templates.CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["llama-3", "Qwen2Tokenizer", "Qwen3_5Tokenizer", "GemmaTokenizer"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    folder = saved(tmp_path_factory.mktemp("family"), request.param)
    mine = read(folder)
    assert mine is not None, f"{request.param} needs transformers"
    return mine, AutoTokenizer.from_pretrained(str(folder), local_files_only=True)


def test_names_and_marks_are_those_of_transformers(family: tuple[Any, Any]) -> None:
    from orchestrate.data.tokens.hub_tokens import special_ids

    mine, theirs = family
    assert mine.names == theirs.special_tokens_map
    assert mine.special == special_ids(theirs)
    assert mine.template == theirs.chat_template
    assert (mine.bos, mine.eos) == (theirs.bos_token_id, theirs.eos_token_id)


@settings(max_examples=60, deadline=None)
@given(text=st.lists(TEXTS, min_size=1, max_size=3).map("<bos>".join))
def test_any_text_has_the_ids_and_places_of_transformers(family: tuple[Any, Any], text: str) -> None:
    mine, theirs = family
    out = theirs(text, add_special_tokens=False, return_offsets_mapping=True)
    for _ in range(3):  # as new, as met once, and from what is kept of its pieces
        ids, places = mine.encode(text)
        assert list(ids) == out["input_ids"] and [tuple(p) for p in places] == list(out["offset_mapping"])
    for some in (ids, ids[1::2], ids[:1]):
        assert mine.decode(some) == theirs.decode(list(some), clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("kind", sorted(REBUILT))
def test_what_a_class_puts_around_its_vocabulary_is_known(tmp_path: Path, kind: str) -> None:
    """Transformers rebuilds these: the table says as what."""
    file = json.loads((saved(tmp_path, kind) / "tokenizer.json").read_text())
    assert {part: file[part] for part in ("normalizer", "pre_tokenizer")} == {
        part: REBUILT[kind][part] for part in ("normalizer", "pre_tokenizer")
    }
    assert file["model"].items() >= REBUILT[kind]["model"].items()


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"}),
        ("tokenizer_config.json", {"tokenizer_class": None}),
        ("tokenizer_config.json", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("tokenizer_config.json", {"bos_token": "<a new one>"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<another>"]}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.Y", None]}}),
        ("tokenizer_config.json", {"split_special_tokens": True}),
        ("config.json", {"model_type": "mistral"}),
        ("config.json", {"model_type": "qwen2"}),
    ],
)
def test_where_files_do_not_say_all_transformers_is_asked(tmp_path: Path, file: str, fields: Any) -> None:
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    assert read(tmp_path / "model")
    change(tmp_path / "model" / file, **fields)
    assert read(tmp_path / "model") is None


def test_a_folder_that_needs_transformers_is_counted_with_it(tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    change(tmp_path / "model" / "tokenizer_config.json", bos_token="<a new one>")
    rows = [ChatExample(messages=chat, tools=tools) for chat, tools in CHATS.values()]
    asked, direct = counter(f"hf:{tmp_path / 'model'}").count(rows), counter(f"hf:{TINY}").count(rows)
    assert asked.tokens == direct.tokens and asked.trained == direct.trained


def test_named_templates_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = folder_with(tmp_path, "default")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("other")
    theirs = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    mine = read(folder)
    assert mine and mine.template == theirs.chat_template == {"default": "default", "tool_use": "other"}


def test_a_template_cannot_leave_its_sandbox() -> None:
    for inside in ("''.__class__.__mro__", "dict.__init__", "namespace(_x=1)", "raise_exception('no')"):
        with pytest.raises(DataError):
            chat_templates.render("{{ " + inside + ".y }}", [], names={})


SETTINGS: list[dict[str, Any]] = [
    {"enable_thinking": False},
    {"enable_thinking": True, "keep_thinking": True},
    {"reasoning_effort": "low", "model_identity": 'You are "it"\n\\ and 日本 \U0001f600'},
    {"truncate_history_thinking": False, "unread": [1, 2.5, None, {"a": "b'\""}]},
]


@pytest.mark.slow
@pytest.mark.parametrize("name", each(n for n in TEMPLATES if not n.endswith("_training")))
def test_settings_in_the_template_are_those_that_are_handed_to_it(name: str) -> None:
    """As transformers hands them in; and one that is handed to it later goes before them."""
    from jinja2 import TemplateError
    from transformers.utils import chat_template_utils

    def judged(template: object, chat: list[ChatMessage], tools: Any, **more: Any) -> str | None:
        try:
            return chat_template_utils.render_jinja_template(
                conversations=[[chat_templates.message(m) for m in chat]],
                tools=tools,
                chat_template=str(template),
                add_generation_prompt=True,
                **{**NAMES, **more},
            )[0][0]
        except (TemplateError, TypeError, KeyError):
            return None

    template = TEMPLATES[name]
    for handed in SETTINGS:
        held = chat_templates.with_settings(template, handed)
        for kind in ("plain", "turns", "reasoning", "tools"):
            chat, tools = CHATS[kind]
            expected = judged(template, chat, tools, **handed)
            assert judged(held, chat, tools) == expected
            other = {key: None for key in handed}
            assert judged(held, chat, tools, **other) == judged(template, chat, tools, **other)
            mine = by_us(str(held), chat, tools, answer_next=True)
            assert (mine[0] if isinstance(mine, tuple) else mine) == expected
    assert chat_templates.with_settings(template, None) == template
    assert chat_templates.with_settings({"default": template}, {"x": 1}) == {
        "default": chat_templates.with_settings(template, {"x": 1})
    }


def test_a_template_that_jinja_cannot_read_is_said() -> None:
    with pytest.raises(DataError, match="line 2: "):
        chat_templates.require_template("{{ messages }}\n{% if %}")
    chat_templates.require_template(TEMPLATES["qwen3_training"])
    assert chat_templates.reads(TEMPLATES["qwen3"], "enable_thinking")
    assert not chat_templates.reads({"default": TEMPLATES["llama3"]}, "enable_thinking")
