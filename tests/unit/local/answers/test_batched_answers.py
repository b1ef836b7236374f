"""What a batch of an evaluation saves, and what it may change: nothing in 32 bits; in 16 bits it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
import torch
from tests.paths import BUNDLED, TINY
from tests.unit.local.families import make

from orchestrate.data import Dataset
from orchestrate.data.rows import ChatMessage
from orchestrate.evaluation.contenders import by_generator, fingerprint
from orchestrate.evaluation.evaluate import EvaluationTerms, Subject, evaluate
from orchestrate.evaluation.held_out import held_out
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.verdict import Demand
from orchestrate.local import Generator
from orchestrate.local.answers.engine import ROUNDED_OTHERWISE, Engine, Loading, PromptsRequest
from orchestrate.paid.paid_requests import Asking
from orchestrate.types import Contender, Evaluation, Message, Reply, Sampling

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROWS = 24


class Loaded:
    """A model as `Generator` has it in a process, with a count of its passes."""

    expected_precision = None
    four_bit = False

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        self.answerer = Engine(Loading(base=str(model), base_name="base", threads=1, four_bit=False))
        self.model = self.answerer.inner.to(dtype)
        self.passes = 0
        self.model.register_forward_pre_hook(self._count)

    def _count(self, module: Any, args: Any) -> None:
        del module, args
        self.passes += 1

    def attempt(self, prompts: Sequence[Sequence[Message]], **more: Any) -> list[Reply]:
        sent: list[dict[str, Any]] = []
        asked = [[m.to_dict() for m in prompt] for prompt in prompts]
        request = msgspec.convert({"prompts": asked, "model": "base", **more}, PromptsRequest)
        self.answerer.answer(request, sent.append)
        return [Reply.from_dict(told) for told in sent[-1]["replies"]]

    def likelihoods(self, rows: Sequence[Any], *, base: bool = False) -> Any:
        raise NotImplementedError  # only a metric of likelihood asks for it


def evaluated(loaded: Any, folder: Path, batch: int | None = None) -> Evaluation:
    items = held_out(Dataset.open(str(BUNDLED / "orders" / "test.jsonl")), limit=ROWS).items
    sampling = Sampling(max_tokens=16, batch=batch)
    contender = Contender(name="base", kind="model", model="m", provider="local", served_by="here")
    candidate = by_generator(contender, loaded, sampling, "weights", base=True)
    nobody: Any = None
    asking = Asking(folder / "answers")
    metrics = registry.make(["exact_match"], Context(items, asking, nobody, nobody))
    terms = EvaluationTerms(metrics, sampling, {}, Demand())
    return evaluate("e", Subject(items, "t", "d"), [candidate], terms, asking, folder / "items.jsonl")


def answers(folder: Path) -> list[str]:
    lines = (folder / "items.jsonl").read_text().splitlines()
    return [json.loads(line)["answers"]["base"][0]["text"] for line in lines]


def test_answers_in_4_bits_are_not_taken_for_those_in_16() -> None:
    contender = Contender(name="base", kind="model", model="m", provider="local", served_by="here")
    asked = [
        by_generator(contender, Generator(TINY, four_bit=four_bit), Sampling(), "the same files", base=True)
        for four_bit in (True, False, None, True)
    ]
    identities = [json.dumps(one.respondent.identity, sort_keys=True) for one in asked]
    assert len(set(identities)) == 3 and identities[0] == identities[3]


def test_answers_of_a_commit_of_the_hub_are_not_taken_for_those_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repo = tmp_path / "models--someone--small"
    (repo / "refs").mkdir(parents=True)
    assert fingerprint("someone/small") == "someone/small", "nothing is known of it"
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(TINY, repo / "snapshots" / commit)
        (repo / "refs" / "main").write_text(commit)
        assert fingerprint("someone/small") == f"someone/small@{commit}"

    class Hub:
        def model_info(self, repo_id: str, **more: Any) -> Any:
            if repo_id != "someone/small":
                raise ConnectionError
            return SimpleNamespace(sha="c" * 40)

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert fingerprint("someone/small") == f"someone/small@{'c' * 40}", "it is what would be loaded"
    assert fingerprint("someone/other") == "someone/other"


def test_batches_take_a_third_of_the_passes_and_give_the_same_answers(tmp_path: Path) -> None:
    loaded = Loaded(TINY, torch.float32)
    taken: list[int] = []
    for name, batch in (("alone", 1), ("together", None)):
        loaded.passes = 0
        assert not [n for n in evaluated(loaded, tmp_path / name, batch).notes if ROUNDED_OTHERWISE in n]
        taken.append(loaded.passes)
    assert answers(tmp_path / "together") == answers(tmp_path / "alone")
    assert taken[1] * 3 <= taken[0]


@pytest.mark.slow
def test_answers_that_16_bits_turn_are_counted_and_told(tmp_path: Path) -> None:
    """Random weights are seldom sure: by a plain loop some of their answers are others than alone."""
    loaded = Loaded(make("llama", tmp_path / "m"), torch.bfloat16)
    found = evaluated(loaded, tmp_path / "together")
    items = held_out(Dataset.open(str(BUNDLED / "orders" / "test.jsonl")), limit=ROWS).items
    (held,), turned = loaded.answerer.models.values(), 0
    sampler, asked = held.sampler, [[m.to_dict() for m in item.prompt] for item in items]
    prompts = [held.template.asked([ChatMessage(**m) for m in one], None) for one in asked]
    with torch.inference_mode():
        drawn = sampler.draw(loaded.model, prompts, max_tokens=16, temperature=0.0, most_rows=64)
        for prompt, ids in zip(prompts, drawn, strict=True):
            logits = loaded.model(input_ids=torch.tensor([prompt + ids])).logits[0]
            turned += any(int(logits[len(prompt) + n - 1].argmax()) != id for n, id in enumerate(ids))
    assert turned > 0
    assert f"base: {turned} of {ROWS} answers: {ROUNDED_OTHERWISE}" in found.notes
    assert any("cut off at the token limit" in note for note in found.notes)
    assert not [n for n in evaluated(loaded, tmp_path / "alone", 1).notes if ROUNDED_OTHERWISE in n]


def asked_at_once(loaded: Loaded, **more: Any) -> list[str]:
    items = held_out(Dataset.open(str(BUNDLED / "orders" / "test.jsonl")), limit=ROWS).items
    how = {"max_tokens": 16, "temperature": 0.0, "seed": 0, "base": True, **more}
    return [reply.content for reply in loaded.attempt([item.prompt for item in items], **how)]


@pytest.mark.slow
def test_answers_that_16_bits_turn_can_be_mended(tmp_path: Path) -> None:
    loaded = Loaded(make("llama", tmp_path / "m"), torch.bfloat16)
    alone = asked_at_once(loaded, batch=1)
    assert asked_at_once(loaded) != alone
    assert asked_at_once(loaded, rounding="mended") == alone


@pytest.mark.slow
def test_answers_are_held_to_a_schema_alone_and_together() -> None:
    loaded = Loaded(TINY, torch.float32)
    form = {"schema": {"enum": ["left", "right"]}, "calls": None}
    together = asked_at_once(loaded, form=form, rounding="told")
    assert {json.loads(said) for said in together} <= {"left", "right"}
    assert together == asked_at_once(loaded, form=form, batch=1)


def test_where_memory_runs_out_half_as_many_are_answered_together() -> None:
    loaded = Loaded(TINY, torch.float32)
    wanted = asked_at_once(loaded)
    failed: list[int] = []

    def fail(module: Any, args: Any) -> None:
        del module
        if len(args[0]) > 7:
            failed.append(len(args[0]))
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    loaded.model.model.layers[1].register_forward_pre_hook(fail)
    assert asked_at_once(loaded) == wanted
    assert loaded.answerer.fitting_rows == 6 and max(failed) == ROWS
    failed.clear()
    assert asked_at_once(loaded) == wanted and not failed
    found = loaded.answerer.likelihoods("base", [{"text": f"Order {n}"} for n in range(9)], base=True)
    assert failed == [8] and len(found) == 9


def test_a_question_that_the_template_refuses_costs_the_others_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "strict"
    shutil.copytree(TINY, folder)
    template = folder / "chat_template.jinja"
    strict = "{% if 'town' in messages | string %}{{ raise_exception('no towns') }}{% endif %}"
    template.write_text(strict + template.read_text())
    answerer = Engine(Loading(base=str(folder), base_name="base", threads=1, four_bit=False))
    sent: list[dict[str, Any]] = []
    asked = [[{"role": "user", "content": text}] for text in ("9 cups", "a town", "10 cups")]
    request = {"model": "base", "seed": 0, "max_tokens": 4, "temperature": 0.0}
    for prompts, stream in ((asked, False), ([asked[0], asked[2]], False), ([asked[1]], True)):
        question = {**request, "prompts": prompts, "stream": stream}
        answerer.answer(msgspec.convert(question, PromptsRequest), sent.append)
    [first, refused, last], others, [alone] = (one["replies"] for one in sent)
    assert [first, last] == others and "no towns" in refused["refused"]
    assert alone == refused
