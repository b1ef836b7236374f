"""Several models of one base answer from one process, each as if it were alone there."""

from __future__ import annotations

import json
import shutil
import subprocess
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import Generator
from orchestrate.local.answers import engine, model_loader
from orchestrate.local.answers.engine import Engine, Loading, PromptsRequest
from orchestrate.local.answers.worker import Worker
from orchestrate.local.model.loader import DTYPES
from orchestrate.serving.server import server_process
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
        "of its base": random_adapter(folder / "pissa", 5),
    }
    config = made["of its base"] / "adapter_config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps({**told, "init_lora_weights": "pissa"}))
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
    return said, [one.nats for one in generator.likelihoods(rows, base=base)]


@pytest.mark.slow
def test_each_answers_as_it_does_alone(adapters: Adapters, worker: Worker) -> None:
    """Also one that is trained in 4 bits, one whose own table lies on the base, and one for which peft takes
    a part out of the base: they get a base of their own, and leave nothing on that of the next."""
    alone: dict[str, Any] = {}
    for name, folder in adapters.items():
        with Generator(str(TINY), folder, threads=1, device="cpu") as one:
            alone[name] = asked(one), asked(one, base=True)
    with Generator(str(TINY), threads=1, device="cpu") as one:
        plain = asked(one)
    assert len({str(tuned) for tuned, _ in alone.values()} | {str(plain)}) == 6, "no two answer alike"
    in_16_bits = [name for name in adapters if name != "second"]
    assert all(alone[name][1] == plain for name in in_16_bits), "the base is itself under each of them"

    def of(folder: Path | None) -> Generator:
        return Generator(str(TINY), folder, threads=1, device="cpu", worker=worker)

    for name in (
        "first",
        "weight-decomposed",
        "first",
        "second",
        "first",
        "with a table",
        "of its base",
        "first",
    ):
        one = of(adapters[name])
        assert (asked(one), asked(one, base=True)) == alone[name], name
        assert asked(of(None)) == plain, f"after {name}"


@pytest.mark.slow
def test_the_base_is_loaded_once(adapters: Adapters) -> None:
    def load(*names: str) -> Loading:
        models = {name: str(adapters[name]) for name in names}
        return Loading(base=str(TINY), base_name="base", models=models, threads=1, device="cpu")

    answerer = Engine(load("first"))
    table = answerer.inner.get_input_embeddings().weight
    assert answerer.turn(load("weight-decomposed"))
    assert answerer.model.get_input_embeddings().weight is table
    layers = weakref.ref(answerer.model)
    assert answerer.turn(load())
    assert layers() is None, "what is not asked lets its memory go"
    assert not answerer.turn(load("second")), "4 bits are another base"


@pytest.mark.slow
@pytest.mark.parametrize("large", [True, False])
def test_a_base_alone_has_the_same_precision_served_and_evaluated(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(model_loader, "LARGE_MODEL_BYTES", 0)
    terms = server_process.ServerSettings(threads=1, device="cpu")
    told, _ = server_process.loading_of([], terms, str(TINY))
    served = Engine(msgspec.convert(told, Loading)).model.state_dict()
    answerer = Engine(Loading(base=str(TINY), base_name="base", threads=1, device="cpu"))
    assert answerer.four_bit is large
    evaluated = answerer.model.state_dict()
    assert served.keys() == evaluated.keys()
    assert all(torch.equal(value, served[name]) for name, value in evaluated.items())


def replied(four_bit: bool | None, rounding: str = "left") -> tuple[Engine, dict[str, Any]]:
    """What a base says of its answer."""
    holds = Engine(Loading(base=str(TINY), base_name="base", threads=1, device="cpu", four_bit=four_bit))
    sent: list[dict[str, Any]] = []
    question = {"prompts": [[m.to_dict() for m in ASKED[0]]], "model": "base", "max_tokens": 4, "seed": 0}
    more = {"temperature": 0.0, "base": True, "rounding": rounding}
    holds.answer(msgspec.convert({**question, **more}, PromptsRequest), sent.append)
    return holds, sent[0]["replies"][0]


@pytest.mark.slow
def test_nf4_says_that_it_was_unpacked_and_answers_by_bitsandbytes_where_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights of the one are what bitsandbytes makes of the other's."""
    import bitsandbytes.functional as bnb

    def reply() -> tuple[Engine, list[str]]:
        answerer, told = replied(four_bit=True, rounding="told")
        return answerer, told["notes"]

    unpacked, told = reply()
    assert model_loader.UNPACKED in told
    monkeypatch.setenv("ORCHESTRATE_NF4", "bitsandbytes")
    packed, told = reply()
    assert model_loader.UNPACKED not in told
    plain = dict(unpacked.model.named_modules())
    found = 0
    for name, module in packed.model.named_modules():
        if type(module).__name__ == "Linear4bit":
            stands_for = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            assert torch.equal(stands_for.to(plain[name].weight.dtype), plain[name].weight)
            found += 1
    assert found


@pytest.mark.slow
def test_a_large_model_says_that_it_answers_in_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_loader, "LARGE_MODEL_BYTES", 0)

    by_size, named, full = (replied(four_bit=four_bit)[1] for four_bit in (None, True, False))
    assert by_size["precision"] == named["precision"] == "NF4 (4 bits)"
    assert full["precision"] in DTYPES
    assert [engine.CHOSEN_BY_SIZE in one["notes"] for one in (by_size, named, full)] == [
        True,
        False,
        False,
    ]


def test_a_base_that_does_not_fit_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("orchestrate.local.answers.model_loader.load_base", full)
    with pytest.raises(UsageError, match="does not fit") as told:
        Engine(Loading(base=str(TINY), threads=1, device="cpu"))
    assert "--base-precision nf4" in (told.value.fix or "")


@pytest.mark.slow
def test_it_stays_one_process_until_its_owner_closes_it(adapters: Adapters, worker: Worker) -> None:
    first = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    with first:
        asked(first)
    process = process_of(worker)
    asked(Generator(str(TINY), adapters["second"], threads=1, worker=worker))
    assert process_of(worker) is process
    worker.close()
    assert process.poll() is not None


@pytest.mark.slow
def test_whoever_leaves_amid_an_answer_does_not_leave_it_to_the_next(
    adapters: Adapters, worker: Worker
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    pieces = one.stream(ASKED[1], max_tokens=200)
    next(pieces)
    with pytest.raises(UsageError, match="another stream of the same process is still open"):
        asked(Generator(str(TINY), adapters["second"], threads=1, worker=worker))
    pieces.close()
    assert asked(one) == whole


@pytest.mark.slow
def test_a_stream_may_be_read_on_in_another_thread(adapters: Adapters, worker: Worker) -> None:
    """As servers do that have a pool of threads; and then the next one has its turn."""
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    pieces = one.stream(ASKED[1], max_tokens=12)
    next(pieces)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(list, pieces).result(240)
        assert pool.submit(asked, one).result(240)


@pytest.mark.slow
def test_it_may_be_closed_amid_a_question(adapters: Adapters, worker: Worker) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    pieces = one.stream(
        ASKED[1], max_tokens=900, temperature=100.0
    )  # at less it ends itself after a few words
    next(pieces)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(list, pieces)
        worker.close()
        with pytest.raises(RunFailed, match="was closed during a request"):
            long.result(240)
    assert asked(one) == whole


@pytest.mark.slow
def test_who_asks_for_other_threads_gets_a_process_of_its_own(adapters: Adapters, worker: Worker) -> None:
    """Libraries read the number once, as they load."""
    Generator(str(TINY), adapters["first"], threads=1, worker=worker).start()
    process = process_of(worker)
    Generator(str(TINY), adapters["first"], threads=2, worker=worker).start()
    assert process_of(worker) is not process and process.poll() is not None


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_has_gone_since_costs_the_others_nothing(
    adapters: Adapters, worker: Worker, tmp_path: Path
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    gone = shutil.copytree(adapters["weight-decomposed"], tmp_path / "gone")
    asked(Generator(str(TINY), gone, threads=1, worker=worker))
    shutil.rmtree(gone)
    assert asked(one) == whole


@pytest.mark.slow
def test_an_adapter_without_safetensors_is_told_as_such(tmp_path: Path, worker: Worker) -> None:
    folder = random_adapter(tmp_path / "pickled", 6, target_modules=["q_proj"])
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match="Pickled weights are not loaded"):
        asked(Generator(str(TINY), folder, threads=1, worker=worker))


def test_a_killed_process_is_told_and_the_next_question_has_another(
    adapters: Adapters, worker: Worker
) -> None:
    one = Generator(str(TINY), adapters["first"], threads=1, worker=worker)
    whole = asked(one)
    process = process_of(worker)
    process.kill()
    process.wait(240)
    with pytest.raises(RunFailed, match="ended with"):
        asked(one)
    assert asked(one) == whole


def process_of(worker: Worker) -> subprocess.Popen[bytes]:
    assert worker._child is not None
    return worker._child.process
