"""Adapters from somewhere: their files may be broken, or written so that they do harm."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from tests.paths import TINY
from tests.unit.serving.conftest import Known, in_process

from orchestrate.errors import DataError, SpecError, UsageError
from orchestrate.serving.combination import combine
from orchestrate.serving.export.card import card
from orchestrate.serving.export.forms import WeightOptions, export
from orchestrate.serving.tuned import TunedModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
Change = Callable[[Path], object]


def config(**more: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return change


def weights(change: Callable[[bytes], bytes]) -> Change:
    def changed(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return changed


def tokenizer(**files: str) -> Change:
    def change(folder: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(TINY / name, folder / name)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    return change


BROKEN: dict[str, Change] = {
    "a rank in words": config(r="8"),
    "a broken rank": config(r=8.5),
    "ranks in a list": config(rank_pattern=["q_proj"]),
    "a number of targets": config(target_modules=5),
    "targets that are no expression": config(target_modules="("),
    "alpha in words": config(lora_alpha="x"),
    "another method": config(peft_type="PREFIX_TUNING"),
    "cut short": weights(lambda data: data[: len(data) // 2]),
    "empty": weights(lambda data: b""),
    "a header beyond the end": weights(lambda data: struct.pack("<Q", 2**60) + data[8:]),
    "a tokenizer of its own code": tokenizer(
        tokenizer_config__json='{"auto_map": {"AutoTokenizer": ["evil.T", null]}, "tokenizer_class": "Evil"}'
    ),
    "could not load a tokenizer": tokenizer(tokenizer__json="{"),
    "a template without end": tokenizer(chat_template__jinja="{% for i in range(10**11) %}x{% endfor %}"),
    "a template that reaches out": tokenizer(chat_template__jinja="{{ ''.__class__.__mro__ }}"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_cannot_be_an_adapter_is_refused_and_nothing_is_left(
    change: Change, known: Known, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(known.adapter, tmp_path / "bad"))
    change(bad)
    one, two = (TunedModel(p.name, p, str(TINY), "adapter") for p in (bad, known.adapter))
    how: dict[str, Any] = {"method": "svd", "weights": None, "density": None, "rank": None}
    with pytest.raises((UsageError, DataError)):
        export(one, "merged", tmp_path / "x", WeightOptions(), work=in_process)
    for parts in ([one, two], [two, one]):
        if parts[0] is two and "tokenizer.json" in {p.name for p in bad.iterdir()}:
            continue  # the first one's tokenizer is taken
        with pytest.raises((UsageError, DataError)):
            combine(parts, ["a", "b"], tmp_path / "x", work=in_process, **how)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad"]


@pytest.mark.parametrize(
    "base", ["x" * 5000, "a\0b", "http://169.254.169.254/x", "../../etc", "~nobody-here/x"]
)
def test_a_base_that_is_none_is_told_as_one(base: str, known: Known, tmp_path: Path) -> None:
    with pytest.raises((UsageError, SpecError)):
        export(TunedModel("t", known.adapter, base, "adapter"), "peft", tmp_path / "x", work=in_process)


def test_no_module_is_named_that_others_would_import(known: Known, tmp_path: Path) -> None:
    bad = Path(shutil.copytree(known.adapter, tmp_path / "bad"))
    config(auto_mapping={"base_model_class": "system", "parent_library": "evil"})(bad)
    made = export(TunedModel("t", bad, str(TINY), "adapter"), "peft", tmp_path / "x", work=in_process)
    assert json.loads((Path(made.folder) / "adapter_config.json").read_bytes())["auto_mapping"] is None


EVIL = (
    "x|y\n\n# Pwned\n<script>alert(1)</script> [here](http://evil) ![i](http://evil) `rm` **b** \x1b]0;t\x07"
)


def test_what_others_wrote_is_text_in_a_model_card(known: Known, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(known.adapter, tmp_path / "a"))
    spec = {"method": {"type": EVIL}, "seed": EVIL, "adapter": {EVIL: EVIL}}
    (folder / "passport.json").write_text(json.dumps({"spec": spec, "dataset_digest": EVIL}))
    shown = card(TunedModel(EVIL, folder, EVIL, "adapter"), "peft", ["run ```\n# Pwned ````"], [EVIL])
    front, _, body = shown.removeprefix("---\n").partition("\n---\n")
    assert yaml.safe_load(front)["base_model"] == EVIL
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", body)
    tokens = MarkdownIt("gfm-like", {"linkify": False, "html": True}).parse(body)
    spans = [child.type for token in tokens for child in token.children or ()]
    assert {*spans} <= {"text", "text_special"}, spans
    blocks = [token.type for token in tokens]
    assert blocks.count("table_open") == 1 and "html_block" not in blocks and blocks.count("fence") == 1
    titles = [tokens[n + 1].content for n, t in enumerate(tokens) if t.type == "heading_open"]
    assert len(titles) == 4 and titles[1:] == ["Run it", "To know", "License"], titles
    rows = blocks.count("tr_open")
    assert blocks.count("td_open") == 2 * (rows - 1), "no cell more than two in a row"


@pytest.mark.parametrize("provenance", [[1], {"spec": [1], "adapter": "x"}, {"spec": {"method": 3}}])
def test_a_provenance_of_other_shapes_says_nothing(provenance: Any, known: Known, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(known.adapter, tmp_path / "a"))
    (folder / "passport.json").write_text(json.dumps(provenance))
    tuned = TunedModel("t", folder, str(TINY), "adapter")
    assert not tuned.four_bit
    assert "# t" in card(tuned, "peft", [], [])


@pytest.mark.parametrize(
    ("name", "slug"),
    [("ünï côde", "n--c-de"), ("../../x", "x"), ("a\nb", "a-b"), ("", "tuned"), ("a" * 300, "a" * 100)],
)
def test_a_slug_is_a_name_to_every_engine(name: str, slug: str) -> None:
    assert TunedModel(name, Path(), "b", "adapter").slug == slug
