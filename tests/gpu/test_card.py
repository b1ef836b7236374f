"""What only a GPU can show, on one card, in minutes: that everything trains, is right and fast, and whether
the memory plan holds. `make test-gpu` runs it and prints its table; nothing else does.

`ORCHESTRATE_TEST_DEVICE=cpu` tries the tests themselves where there is no card, at the size of toys.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.faults.local.test_workers import files, finish, home, job, kill, small, wait  # noqa: F401
from tests.paths import TINY
from tests.unit.local import sessions
from tests.unit.local.answers.test_same_answers import served
from tests.unit.local.sessions import EXACT, make_session

from orchestrate.local.answers.engine import Loading
from orchestrate.local.job import LocalJob
from orchestrate.local.model import PACKAGES
from orchestrate.local.model.files import open_folder
from orchestrate.local.model.loaded import give_back, halving
from orchestrate.local.model.shortcuts.probes import distance
from orchestrate.local.objectives.base import Objective
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import Setup, plan
from orchestrate.local.run.launcher import launch, resume
from orchestrate.local.run.session import Session
from orchestrate.local.speed import bench
from orchestrate.local.speed.peaks import peak_bytes
from orchestrate.local.weights.merges import merge

# torch and transformers describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # older torch asks for it to be deterministic
DEVICE = os.environ.get("ORCHESTRATE_TEST_DEVICE", "cuda")
CARD = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(
        CARD and not torch.cuda.is_available(), reason="there is no NVIDIA GPU that torch can use"
    ),
]
SHAPE: dict[str, Any] = {
    "hidden_size": 4096 if CARD else 64,
    "num_hidden_layers": 4 if CARD else 2,
    "intermediate_size": 14336 if CARD else 128,
    "num_attention_heads": 32 if CARD else 4,
    "num_key_value_heads": 8 if CARD else 2,
    "vocab_size": 128256 if CARD else 8192,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
"""Layers and tables of Llama-3.1-8B, of whose 32 layers four are enough: all are alike."""
ROWS: list[tuple[str, str]] = []


@pytest.fixture(scope="module", autouse=True)
def table(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    capture: Any = request.config.pluginmanager.getplugin("capturemanager")
    name = torch.cuda.get_device_name() if CARD else "a CPU: no figure here means anything"
    with capture.global_and_fixture_disabled():
        print(f"\n\n{name}, torch {torch.__version__}")
        for what, told in ROWS:
            print(f"  {what:<58}{told}")


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """No test is short of memory because of an earlier one, nor runs uncompiled because those before it have
    compiled the same layers as often as torch does."""
    yield
    if CARD:
        torch.compiler.reset()
        give_back(torch.device(DEVICE))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of `SHAPE`, with random weights: 4 GB for a card, made once and by several threads."""
    folder, threads = tmp_path_factory.mktemp("model"), torch.get_num_threads()
    torch.set_num_threads(min(8, os.cpu_count() or 1))
    yield bench.random_model(SHAPE, folder)
    torch.set_num_threads(threads)
    shutil.rmtree(folder)


@contextmanager
def timed(what: str) -> Iterator[list[str]]:
    begun, more = time.monotonic(), list[str]()
    yield more
    ROWS.append((what, ", ".join([f"{time.monotonic() - begun:.1f} s", *more])))


def chats(path: Path, count: int = 32) -> Path:
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            talk = [
                {"role": "user", "content": f"Is {i} even?" + " Think." * (i % 9)},
                {"role": "assistant", "content": "yes" if i % 2 == 0 else "no"},
            ]
            out.write(msgspec.json.encode({"messages": talk}).decode() + "\n")
    return path


METHODS: dict[str, dict[str, Any]] = {
    "sft": {"type": "sft"},
    "dpo": {"type": "dpo"},
    "orpo": {"type": "dpo", "loss": "orpo"},
    "kto": {"type": "dpo", "loss": "kto"},
    "rft": {"type": "rft", "grader": EXACT},
}


def data(method: str, path: Path) -> Path:
    if method == "sft":
        return chats(path)
    if method == "kto":
        return sessions.answers(path, 32)
    return sessions.prompts(path, range(8)) if method == "rft" else sessions.pairs(path, 32)


# -- 1: everything trains ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "adapter", "precision"),
    [
        *((m, "qlora", None) for m in METHODS),
        ("sft", "lora", None),
        ("sft", "lora", "fp16"),
        ("sft", "full", None),
        ("dpo", "full", None),
    ],
)
def test_it_trains(tmp_path: Path, method: str, adapter: str, precision: str | None) -> None:
    with timed(f"{method}, {adapter}") as told:
        session = make_session(
            tmp_path,
            data(method, tmp_path / "t.jsonl"),
            method=METHODS[method],
            adapter={"type": adapter},
            device=DEVICE,
            precision=precision,
            hyper={"learning_rate": 3e-4 if adapter == "full" else 2e-3},
        )
        session.loop.run()
        points = [p.values for p in session.run.metrics() if "train_loss" in p.values]
        told.append(f"loss {points[0]['train_loss']:.3f} to {points[-1]['train_loss']:.3f}")
        told.append(f"engine {session.loaded.choice.name}, {session.loaded.precision.name}")
    assert all(torch.isfinite(torch.tensor(list(v.values()))).all() for v in points)
    assert method != "sft" or points[-1]["train_loss"] < points[0]["train_loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "paged_adamw_8bit"])
def test_a_killed_run_ends_to_the_bit_as_an_unbroken_one(
    small: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    optimizer: str,
) -> None:
    # A card needs more steps than a CPU until somebody has seen the fifth and killed it.
    hyper = msgspec.structs.replace(small.hyper, deterministic=True, optimizer=optimizer, epochs=8)
    # bitsandbytes keeps small states in 32 bits, and pages only those of 100,000 values and more.
    wide = msgspec.structs.replace(small.adapter, r=4096)
    asked = msgspec.structs.replace(small, device=DEVICE, hyper=hyper, adapter=wide)
    with timed(f"killed and resumed, {optimizer}, deterministic") as told:
        whole = launch(asked, home)
        assert finish(whole) == "succeeded", whole.log.read_text()
        killed = launch(msgspec.structs.replace(asked, ref="killed"), home)
        wait(lambda: killed.state().step >= 5)
        kill(killed)
        assert killed.state().result is None, "it had ended before it was killed"
        assert resume(killed)
        assert finish(killed) == "succeeded", killed.log.read_text()
        found = [
            {
                p.name: p.read_bytes()
                for p in (run.path / str(run.state().result)).iterdir()
                if p.suffix != ".json"
            }
            for run in (whole, killed)
        ]
        told.append("the same to the bit" if found[0] == found[1] else "DIFFERENT")
    assert found[0] == found[1] and any(name.endswith(".safetensors") for name in found[0])


@pytest.mark.skipif(not CARD, reason="the allocator of a card")
def test_a_pass_that_runs_out_of_memory_is_halved(model: Path) -> None:
    device = torch.device(DEVICE)
    loaded = bench.load_random(model, Setup(), device, engine="fused")
    rows = bench.chat_rows(SHAPE["vocab_size"])
    objective = Objective(loaded, 0)
    loaded.model.train()

    def run(count: int) -> None:
        objective.run(rows, range(count), 1.0, backward=True)

    run(1)
    peak = peak_bytes(lambda: run(64), device)
    give_back(device)
    limit = torch.cuda.memory_reserved(device) + 0.7 * peak
    torch.cuda.set_per_process_memory_fraction(
        limit / torch.cuda.get_device_properties(device).total_memory, device
    )
    try:
        _, fitting = halving(64, device, run)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    ROWS.append(("out of memory at 64 chats", f"went on with {fitting}"))
    assert 1 < fitting < 64


def test_a_card_gives_the_answers_of_a_cpu(tmp_path: Path) -> None:
    """Of an adapter trained on the card, and merged into its base."""
    with timed("answers drawn, adapter and merged, beside a CPU's"):
        session = sft(tmp_path, device=DEVICE, precision="fp32")
        session.loop.run()
        adapter, merged = session.publish(), tmp_path / "merged"
        merge(open_folder(TINY), adapter, merged, "fp32")
        asked = [("tuned", [{"role": "user", "content": f"Is {n} even?"}]) for n in range(8)]
        found = [
            served(
                Loading(
                    base=str(TINY),
                    models={"tuned": str(folder)},
                    threads=1,
                    device=device,
                    four_bit=False,
                    precision="fp32",
                ),
                asked,
            )
            for device, folder in ((DEVICE, adapter), (DEVICE, merged), ("cpu", adapter))
        ]
    assert found[0] == found[1] == found[2] and any(found[0])


# -- 2: it is right ------------------------------------------------------------------------------------------


def gradient(session: Session, packing: bool = False) -> torch.Tensor:
    objective, rows = Objective(session.loaded, 0, packing=packing), session.loop.train
    session.loaded.model.train()
    objective.run(rows, range(16), objective.weight_of(rows, range(16)), backward=True)
    found = [p.grad.flatten().cpu() for p in session.loaded.trainable.values() if p.grad is not None]
    session.loaded.model.zero_grad()
    return torch.cat(found)


def sft(tmp_path: Path, **job: Any) -> Session:  # noqa: F811
    adapter = {"type": job.pop("adapter", "lora")}
    return make_session(tmp_path, chats(tmp_path / "t.jsonl"), method={"type": "sft"}, adapter=adapter, **job)


def test_a_gpu_has_the_gradients_of_a_cpu(tmp_path: Path) -> None:
    with timed("gradient in 32 bits, beside a CPU's") as told:
        own, others = (
            gradient(sft(tmp_path, device=d, ref=f"on-{n}", engine="plain", precision="fp32"))
            for n, d in enumerate((DEVICE, "cpu"))
        )
        told.append(f"relative distance {distance(own, others):.1e}")
    assert distance(own, others) < 1e-3


@pytest.mark.parametrize("engine", ["plain", "fused", "compile", "liger"])
def test_each_engine_has_the_gradients_of_the_plain_one(tmp_path: Path, engine: str) -> None:
    if engine in PACKAGES and not pytest.importorskip(PACKAGES[engine][0]):
        return
    if engine == "compile" and not CARD:
        pytest.skip("torch.compile is for a GPU")
    with timed(f"gradient by the engine {engine}, beside plain in 32 bits") as told:
        plain = gradient(sft(tmp_path, device=DEVICE, engine="plain", precision="fp32"))
        session = sft(tmp_path, device=DEVICE, engine=engine, precision="bf16", ref="b")
        told.append(f"relative distance {distance(gradient(session), plain):.1e}")
        told += [f"without {what}: {why}" for what, why in session.loaded.left_out.items()]
        apart = distance(gradient(session), plain)
    assert apart < 0.1


def test_packed_rows_have_the_gradients_of_padded_ones(tmp_path: Path) -> None:
    with timed("gradient of packed rows, beside padded ones") as told:
        session = sft(tmp_path, device=DEVICE, precision="bf16", hyper={"packing": True})
        apart = distance(gradient(session, packing=True), gradient(session))
        told += [f"relative distance {apart:.1e}", *session.loaded.turned_on]
        told += [f"without {what}: {why}" for what, why in session.loaded.left_out.items()]
    assert apart < 0.1
    assert session.loaded.packs


def test_an_evaluation_changes_nothing(tmp_path: Path) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        session = sft(tmp_path, device=DEVICE, adapter="qlora")
        before = gradient(session)
        session.loop.objective.evaluate(session.loop.train, 4096)
        assert torch.equal(gradient(session), before)
    finally:
        torch.use_deterministic_algorithms(False)
    ROWS.append(("gradient before and after an evaluation", "the same to the bit"))


# -- 3: it is fast -------------------------------------------------------------------------------------------


def peak_operations() -> float:
    """Of bf16 products a second, as a large one of torch has them."""
    a = torch.randn(*((8192, 8192) if CARD else (256, 256)), device=DEVICE, dtype=torch.bfloat16)
    for repeats in (3, 20):
        begun = _now()
        for _ in range(repeats):
            a @ a
        took = _now() - begun
    return 20 * 2 * a.shape[0] ** 3 / took


def _now() -> float:
    if CARD:
        torch.cuda.synchronize()
    return time.perf_counter()


@pytest.mark.parametrize("engine", ["plain", "fused", "compile", "liger"])
@pytest.mark.parametrize("packing", [False, True])
def test_how_fast_a_step_is(model: Path, engine: str, packing: bool) -> None:
    if engine in PACKAGES:
        pytest.importorskip(PACKAGES[engine][0])
    if engine == "compile" and not CARD:
        pytest.skip("torch.compile is for a GPU")
    loaded = bench.load_random(model, Setup(packing=packing), torch.device(DEVICE), engine=engine)
    rows = bench.chat_rows(SHAPE["vocab_size"])
    objective = Objective(loaded, 0, packing=packing)
    loaded.model.train()
    tokens, begun = 0, 0.0
    for step in range(6):
        if step == 2:
            tokens, begun = 0, _now()
        some = range(step * 64, (step + 1) * 64)
        tokens += objective.run(rows, some, 1.0, backward=True).tokens
    speed = tokens / (_now() - begun)
    # Two operations a weight forward; of a frozen one as many again for its input's gradient.
    shape = ModelShape.of(SHAPE)
    share = speed * 4 * (shape.parameters - shape.embedding_parameters / 2) / peak_operations()
    what = f"step of 64 chats, {engine}{', packed' if packing else ''}"
    told = [f"{speed:,.0f} tokens/s, {share:.0%} of the products' peak"]
    told += [f"without {name}: {why}" for name, why in loaded.left_out.items()]
    ROWS.append((what, ", ".join(told)))
    assert speed > 0


# -- 4: the memory plan holds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setup",
    [
        Setup(longest=512),
        Setup(longest=4096, gradient_checkpointing=True),
        Setup(rows=8, longest=512, packing=True),
        Setup(adapter="lora", rows=4, longest=1024),
        Setup(adapter="full", longest=1024),
        Setup(adapter="full", longest=4096, gradient_checkpointing=True),
    ],
)
def test_the_plan_is_within_a_tenth_of_the_peak(model: Path, setup: Setup) -> None:
    parts = plan(ModelShape.of(SHAPE), setup, device=DEVICE, available_bytes=1).parts
    planned = sum(size for name, size in parts.items() if name != "overhead")
    peak = sum(bench.memory(SHAPE, setup, torch.device(DEVICE), model=model).values())
    how = f"{setup.adapter}, {setup.rows} x {setup.longest}" + (", packed" if setup.packing else "")
    how += ", checkpointing" if setup.gradient_checkpointing else ""
    ROWS.append((f"memory, {how}", f"planned {planned / 1e9:.2f} GB, {planned / peak - 1:+.1%} of the peak"))
    assert not CARD or planned == pytest.approx(peak, rel=0.1)
