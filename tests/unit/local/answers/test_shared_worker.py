"""Several models of one base answer from one process, each as if it were alone there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import Generator
from orchestrate.local.answers.answering import Answerer
from orchestrate.local.answers.worker import Worker
from orchestrate.types import Message

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
ASKED = [[Message(role="user", content=text)] for text in ("Who?", "Send 9 cups to Rome.", "Cheers, and bye")]
Adapters = dict[str, Path]


@pytest.fixture(scope="module", autouse=True)
def forked(quick_python: None) -> None:
    """Models answer in processes that are up at once."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    folder = tmp_path_factory.mktemp("adapters")
    made = {
        "first": random_adapter(folder / "first", 1),
        "second": random_adapter(folder / "second", 2, r=4, target_modules=["q_proj", "down_proj"]),
        "weight-decomposed": random_adapter(folder / "dora", 3, use_dora=True),
        "with a table": random_adapter(
            folder / "table", 4, modules_to_save=["embed_tokens"], ensure_weight_tying=True
        ),
    }
    told = made["second"] / "passport.json"
    told.write_text('{"adapter": {"type": "qlora"}}')
    return made


@pytest.fixture
def worker() -> Iterator[Worker]:
    shared = Worker()
    yield shared
    shared.close()


def asked(generator: Generator, *, base: bool = False) -> tuple[list[str], list[float]]:
    """What it says, and the nats of what it does not say."""
    said = [reply.content for reply in generator.generate(ASKED, base=base, max_tokens=12)]
    rows = [{"messages": [m.to_dict() for m in one], "answer": "9 cups, Rome"} for one in ASKED]
    return said, [nats for nats, _, _ in generator.likelihoods(rows, base=base)]


@pytest.mark.slow
def test_each_answers_as_it_does_alone(adapters: Adapters, worker: Worker) -> None:
    """Also one that is trained in 4 bits, and one whose own table lies on the base: they get a base of their
    own, and leave nothing on that of the next."""
    alone: dict[str, Any] = {}
    for name, folder in adapters.items():
        with Generator(str(TINY), folder, threads=1, device="cpu") as one:
            alone[name] = asked(one), asked(one, base=True)
    with Generator(str(TINY), threads=1, device="cpu") as one:
        plain = asked(one)
    assert len({str(tuned) for tuned, _ in alone.values()} | {str(plain)}) == 5, "no two answer alike"

    def of(folder: Path | None) -> Generator:
        return Generator(str(TINY), folder, threads=1, device="cpu", worker=worker)

    for name in ("first", "weight-decomposed", "first", "second", "first", "with a table", "first"):
        one = of(adapters[name])
        assert (asked(one), asked(one, base=True)) == alone[name], name
        assert asked(of(None)) == plain, f"after {name}"


def test_the_base_is_loaded_once(adapters: Adapters) -> None:
    def load(name: str) -> dict[str, Any]:
        return {"model": str(TINY), "adapter": str(adapters[name]), "threads": 1, "device": "cpu"}

    answerer = Answerer(load("first"))
    table = answerer._base.get_input_embeddings().weight
    assert answerer.turn(load("weight-decomposed"))
    assert answerer._tuned.get_input_embeddings().weight is table
    assert len(answerer._tuned.peft_config) == 1, "what is not asked lets its memory go"
    assert answerer.turn({**load("first"), "adapter": None})
    assert not answerer.turn(load("second")), "4 bits are another base"


def test_it_stays_one_process_until_its_owner_closes_it(adapters: Adapters, worker: Worker) -> None:
    first = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    with first:
        asked(first)
    pid = process_of(worker)
    asked(Generator(str(TINY), adapters["second"], threads=1, worker=worker))
    assert process_of(worker) == pid
    worker.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_whoever_leaves_amid_an_answer_does_not_leave_it_to_the_next(
    adapters: Adapters, worker: Worker
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    pieces = one.stream(ASKED[1], max_tokens=200)
    next(pieces)
    pieces.close()
    assert asked(one) == whole


def test_what_cannot_be_loaded_costs_the_others_nothing(
    adapters: Adapters, worker: Worker, tmp_path: Path
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    misfit = random_adapter(tmp_path / "misfit", 5)
    (misfit / "adapter_model.safetensors").write_bytes(
        (adapters["second"] / "adapter_model.safetensors").read_bytes()
    )
    with pytest.raises(UsageError, match="does not fit its base"):
        asked(Generator(str(TINY), misfit, threads=1, worker=worker))
    assert asked(one) == whole


def test_a_killed_process_is_told_and_the_next_question_has_another(
    adapters: Adapters, worker: Worker
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    assert worker._process is not None
    worker._process.kill()
    worker._process.wait(120)
    with pytest.raises(RunFailed, match="ended with"):
        asked(one)
    assert asked(one) == whole


def process_of(worker: Worker) -> int:
    assert worker._process is not None
    return worker._process.pid
