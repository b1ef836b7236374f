"""Drawing answers: what a batch may change, and where an answer ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.local.families import FAMILIES, make
from tests.unit.local.thinkers import make_family
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from orchestrate.local.encoding import Template
from orchestrate.local.model.files import ModelFolder
from orchestrate.local.model.loader import load_tokenizer
from orchestrate.local.model.sampling import GrowingLayer
from orchestrate.local.model.sampling.sampler import Sampler

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CPU = torch.device("cpu")
FAST = ("gpt2", "llama", "mamba2")
PROMPTS = [[5, 6, 7, 8], [9, 10, 11] * 3, [12] * 7, [13, 14]]
SHARING = [[7, 8, 9, 10] * 12 + own for own in ([5], [6, 5, 4], [9, 3], [11, 12, 13, 14, 15])]
GREEDY: dict[str, Any] = {"max_tokens": 12, "temperature": 0.0}


def sampler(**more: Any) -> Sampler:
    return Sampler(**{"stops": (2,), "others": (), "pad": 0, "device": CPU, "context": 1024, **more})


def whole(folder: Path) -> Any:
    """By the one of the libraries' two classes that knows it."""
    kinds: tuple[Any, ...] = (AutoModelForCausalLM, AutoModelForImageTextToText)
    with suppress(ValueError):
        return kinds[0].from_pretrained(folder, dtype=torch.float32).eval()
    return kinds[1].from_pretrained(folder, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in FAST else [pytest.mark.slow]) for f in sorted(FAMILIES)],
)
def test_a_batch_or_a_beginning_that_is_read_once_changes_no_answer(family: str, tmp_path: Path) -> None:
    model = whole(make(family, tmp_path / "m"))
    greedy = {**GREEDY, "max_tokens": 6}
    for prompts, shares in ((PROMPTS, False), (SHARING, True)):
        alone = [sampler().draw(model, [p], most_rows=1, **greedy)[0] for p in prompts]
        assert sampler(shares=shares).draw(model, prompts, most_rows=64, **greedy) == alone
        assert shares or len({tuple(a) for a in alone}) > 1


def test_a_beginning_is_read_once(tmp_path: Path) -> None:
    kind: Any = AutoModelForCausalLM
    model = kind.from_pretrained(make("llama", tmp_path / "m"), dtype=torch.float32).eval()
    read: list[int] = []

    def count(module: Any, args: Any, given: dict[str, Any]) -> None:
        del module, args
        read.append(given["input_ids"].numel())

    model.register_forward_pre_hook(count, with_kwargs=True)
    for shares in (False, True):
        draws = sampler(shares=shares, _bears_padding=True, _bears_sharing=True)
        draws.draw(model, SHARING, most_rows=64, max_tokens=1, temperature=0.0)
    assert read == [4 * 53, 48, 4 * 5]


def test_a_window_loses_nothing_to_the_padding_behind_a_beginning() -> None:
    """Mistral's: the first prompts and answers fit the window, as the look at sharing finds; the others do
    not."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = MistralConfig(
        **shape, num_key_value_heads=2, vocab_size=200, sliding_window=64, initializer_range=0.3
    )
    model = MistralForCausalLM(config).eval()
    begin = [5 + n * 37 % 190 for n in range(36)]
    prompts = [begin + [5 + n * 53 % 190 for n in range(k, k + k)] for k in (3, 5, 20, 60)]
    alone = [sampler().draw(model, [p], most_rows=1, **GREEDY)[0] for p in prompts]
    draws = sampler(shares=True)
    assert draws.draw(model, prompts, most_rows=2, **GREEDY) == alone
    assert draws._bears_sharing, "where all fits, the beginning is read once"


@pytest.mark.parametrize("shares", [False, True])
def test_an_answer_that_is_another_one_alone_is_found(shares: bool, tmp_path: Path) -> None:
    kind: Any = AutoModelForCausalLM
    model = kind.from_pretrained(make("llama", tmp_path / "m"), dtype=torch.float32).eval()
    draws = sampler(shares=shares, _bears_sharing=True)
    answers = draws.draw(model, SHARING, most_rows=64, **GREEDY)
    answers[2][-1] += 1
    with torch.inference_mode():
        assert draws.changed_by_rounding(model, SHARING, answers, {0, 1, 2, 3}) == {2}
        assert (
            draws.changed_by_rounding(model, SHARING, answers, {0, 1, 3})
            == draws.changed_by_rounding(model, [], [], set())
            == set()
        )


class LooksBack(LlamaForCausalLM):
    """As one that forgets what a cache holds."""

    def forward(self, *args: Any, cache: Any = None, position_ids: Any = None, **more: Any) -> Any:  # type: ignore[override]
        return super().forward(*args, cache=cache, position_ids=None, **more)


def test_a_beginning_is_not_shared_where_that_changes_what_comes_next(tmp_path: Path) -> None:
    kind: Any = LooksBack
    model = kind.from_pretrained(make("llama", tmp_path / "m"), dtype=torch.float32).eval()
    draws = sampler(shares=True)
    draws.draw(model, SHARING, most_rows=64, **GREEDY)
    assert draws._bears_sharing is False


class LooksAtPadding(LlamaForCausalLM):
    """As architectures do that take no mask."""

    def forward(self, *args: Any, **more: Any) -> Any:  # type: ignore[override]
        return super().forward(*args, **{**more, "attention_mask": None, "position_ids": None})


def test_prompts_of_several_lengths_meet_only_where_padding_is_not_seen(tmp_path: Path) -> None:
    kind: Any = LooksAtPadding
    model = kind.from_pretrained(make("llama", tmp_path / "m"), dtype=torch.float32).eval()
    alone = [sampler().draw(model, [p], most_rows=1, **GREEDY)[0] for p in PROMPTS]
    assert sampler().draw(model, PROMPTS, most_rows=64, **GREEDY) == alone
    careless = sampler(_bears_padding=True)
    assert careless.draw(model, PROMPTS, most_rows=64, **GREEDY) != alone


def test_no_answer_goes_beyond_the_context_and_shortens_another(tmp_path: Path) -> None:
    """gpt2 has no position behind its last one."""
    kind: Any = AutoModelForCausalLM
    folder = ModelFolder(make("gpt2", tmp_path / "m", n_positions=16, max_position_embeddings=16))
    model = kind.from_pretrained(folder.path, dtype=torch.float32).eval()
    draws = sampler(stops=(), context=folder.context)
    assert folder.context == 16
    answers = draws.draw(model, [[5] * 14, [6] * 3, [7] * 15], most_rows=64, max_tokens=8, temperature=0.0)
    assert [len(a) for a in answers] == [2, 8, 1]
    assert draws.room([5] * 16, 8) == draws.room([5] * 20, 8) == 0


class Scripted(LlamaForCausalLM):
    """Writes the same tokens to every prompt."""

    script: tuple[int, ...] = ()
    start = 0

    def forward(self, input_ids: Any, *args: Any, **more: Any) -> Any:  # type: ignore[override]
        out: Any = super().forward(input_ids, *args, **more)
        written = out.past_key_values.get_seq_length() - self.start
        logits = torch.zeros_like(out.logits)
        logits[:, -1, self.script[min(written, len(self.script) - 1)]] = 9.0
        out.logits = logits
        return out


def test_who_begins_somebody_elses_turn_has_ended_its_own(tmp_path: Path) -> None:
    """As a model does that was trained on earlier turns, which gpt-oss's template ends with the token that
    ends its thinking too."""
    folder = ModelFolder(make_family("channels", tmp_path / "m"))
    template = Template(load_tokenizer(folder.path))
    draws = Sampler.of(template, folder, CPU)
    ends = [template.tokenizer.convert_tokens_to_ids(t) for t in ("<|return|>", "<|call|>", "<|im_end|>")]
    assert set(ends[:2]) <= set(draws.stops)
    kind: Any = Scripted
    model = kind.from_pretrained(folder.path, dtype=torch.float32).eval()
    written = (
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>blue<|end|>"
        "<|start|>user<|message|>And then?<|end|>"
    )
    prompt = template.tokens("<|start|>user<|message|>Sky?<|end|><|start|>assistant")[0]
    model.script, model.start = tuple(template.tokens(written)[0]), len(prompt)
    [ids] = draws.draw(model, [prompt], most_rows=1, max_tokens=100, temperature=0.0)
    assert template.tokenizer.decode(ids).endswith("blue<|end|><|start|>user<|message|>")
    own, ended = draws.said(ids)
    said = template.said(own, prompt, cut=not ended)
    assert ended and (said.content, said.reasoning) == ("blue", "hm")
    [cut] = draws.draw(model, [prompt], most_rows=1, max_tokens=len(ids) - 1, temperature=0.0)
    assert not draws.said(cut)[1] and template.said(cut, prompt, cut=True).content == "blue"


@pytest.mark.parametrize("kept_in", [torch.inference_mode, torch.no_grad, torch.enable_grad])
@pytest.mark.parametrize("made_in", [torch.inference_mode, torch.no_grad])
def test_rows_that_are_kept_have_their_columns_and_go_on(made_in: Any, kept_in: Any) -> None:
    """Also where an answer is given up between two steps, outside of the mode that made the caches."""
    layer = GrowingLayer()
    with made_in():
        for columns in (3, 1):
            layer.update(torch.randn(4, 2, columns, 8), torch.randn(4, 2, columns, 8))
    assert layer.keys is not None and layer.values is not None
    keys, values = layer.keys[[0, 3]].clone(), layer.values[[0, 3]].clone()
    with kept_in():
        layer.keep([0, 3])
    new_keys, new_values = torch.ones(2, 2, 1, 8), torch.zeros(2, 2, 1, 8)
    with made_in():
        found = layer.update(new_keys, new_values)
    assert torch.equal(found[0], torch.cat([keys, new_keys], dim=2))
    assert torch.equal(found[1], torch.cat([values, new_values], dim=2))
