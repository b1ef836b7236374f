"""Whoever asks a model of this machine gets the same greedy tokens: a chat, an evaluation, a server, training
by rewards, a sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.paths import BUNDLED, TINY
from tests.unit.local.families import make
from tests.unit.serving.conftest import random_adapter

from orchestrate.data import Dataset
from orchestrate.data.rows import ChatMessage
from orchestrate.evaluation.held_out import held_out
from orchestrate.local.answers.engine import Engine, GenerationRequest, Loading, PromptsRequest
from orchestrate.local.answers.model_loader import base_of, template_and_sampler
from orchestrate.local.model import files
from orchestrate.local.model.loader import load_adapter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOKENS = 12
Ids = list[list[int]]


def questions(file: str, count: int) -> list[list[dict[str, Any]]]:
    items = held_out(Dataset.open(str(BUNDLED / "orders" / file)), limit=count).items
    return [[m.to_dict() for m in item.prompt] for item in items]


def answered(
    folder: Path, adapter: Path | None, asked: Sequence[Any], *, bf16: bool = False, **more: Any
) -> Ids:
    """The ids that a process of chats, evaluations and sandboxes draws, on a machine that multiplies in bf16
    or in 32 bits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrate.local.machine.cpu_multiplies_bf16", lambda: bf16)
        models = {} if adapter is None else {"tuned": str(adapter)}
        name, drawn = "base" if adapter is None else "tuned", list[list[int]]()
        loading = Loading(base=str(folder), base_name="base", models=models, threads=1, four_bit=False)
        answerer = Engine(loading)
    model = answerer.models[name]
    draw = model.sampler.draw

    def noting(holds: Any, prompts: Sequence[Any], **way: Any) -> Ids:
        found = draw(holds, prompts, **way)
        if len(prompts) == len(asked):
            drawn[:] = found
        else:  # those that are mended
            given = [model.template.asked([ChatMessage(**m) for m in one], None) for one in asked]
            at = given.index(list(prompts[0]))
            drawn[at] = found[0]
        return found

    model.sampler.draw = noting
    request = {"model": name, "prompts": asked, "max_tokens": TOKENS, "temperature": 0.0, "seed": 0}
    answerer.answer(msgspec.convert({**request, **more}, PromptsRequest), lambda _: None)
    return drawn


def served(loading: Loading, asked: Sequence[tuple[str, Any]]) -> Ids:
    """All requests are there at once; `asked`: model and messages of each."""
    engine, found = Engine(loading), dict[str, list[int]]()

    def send(message: dict[str, Any]) -> None:
        assert "error" not in message, message
        if "reason" in message:
            found[message["id"]] = message["ids"]

    for n, (model, messages) in enumerate(asked):
        said = [ChatMessage(**one) for one in messages]
        wish = GenerationRequest(
            id=str(n), model=model, messages=said, max_tokens=TOKENS, temperature=0.0, tells_ids=True
        )
        engine.add(wish, engine.prompt(wish), send)
    while not engine.batching.idle:
        engine.step(send)
    return [found[str(n)] for n in range(len(asked))]


def test_two_hundred_prompts_and_three_adapters_have_the_same_ids_everywhere(tmp_path: Path) -> None:
    adapters = {name: random_adapter(tmp_path / name, seed) for seed, name in enumerate("abc")}
    asked = questions("train.jsonl", 200)
    assert len(asked) == 200
    pairs = [(name, one) for one in asked for name in adapters]  # those of one batch have all adapters
    loading = Loading(
        base=str(TINY),
        base_name="base",
        models={name: str(folder) for name, folder in adapters.items()},
        threads=1,
        four_bit=False,
        precision="fp32",
    )
    by_server = served(loading, pairs)
    for place, (name, folder) in enumerate(adapters.items()):
        wanted = by_server[place :: len(adapters)]
        assert len({tuple(ids) for ids in wanted}) > 50
        assert answered(TINY, folder, asked, rounding="told") == wanted, f"an evaluation of {name}"
        assert answered(TINY, folder, asked, rounding="mended") == wanted, f"a sandbox with {name}"
        assert answered(TINY, folder, asked[:20], batch=1) == wanted[:20], f"a chat with {name}"
        assert rewarded(folder, asked) == wanted, f"training by rewards from {name}"


def rewarded(adapter: Path, asked: Sequence[Any]) -> Ids:
    """As training by rewards draws: from the model that is trained, without a shared beginning."""
    folder, device = files.fetch(str(TINY)), torch.device("cpu")
    model = load_adapter(base_of(folder, four_bit=False, device=device, dtype=torch.float32), adapter).eval()
    template, sampler = template_and_sampler(adapter, folder, device)
    prompts = [template.asked([ChatMessage(**m) for m in one], None) for one in asked]
    with torch.inference_mode():
        return sampler.draw(model, prompts, max_tokens=TOKENS, temperature=0.0, most_rows=32)


def test_in_16_bits_a_batch_invariant_server_gives_what_was_evaluated_row_by_row(tmp_path: Path) -> None:
    folder = make("llama", tmp_path / "m")  # random weights are seldom sure: company turns some answers
    how: dict[str, Any] = {"base": str(folder), "base_name": "m", "threads": 1, "precision": "bf16"}
    turned = 0
    for file in ("test.jsonl", "validation.jsonl", "train.jsonl"):
        asked = questions(file, 24)
        pairs = [("m", one) for one in asked]
        evaluated = answered(folder, None, asked, bf16=True, batch=1)
        assert served(Loading(**how, batch_invariant=True, most_rows=16), pairs) == evaluated, file
        turned += served(Loading(**how, most_rows=16), pairs) != evaluated
    assert turned, "no answer hangs on company here, so nothing was shown"
