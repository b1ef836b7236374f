"""The loop in this process, on the real tiny model in 4 bits."""

from __future__ import annotations

import json
import random
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.cells import first
from tests.paths import TINY

from orchestrate.errors import RunFailed
from orchestrate.local import machine
from orchestrate.local.encoding.encoded import epoch_batches, micro_batches
from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Method
from orchestrate.local.machine import GpuLoad, GpuMonitor
from orchestrate.local.model.shortcuts.selection import fuse
from orchestrate.local.objectives.base import collate, pack
from orchestrate.local.plan import ModelShape
from orchestrate.local.run import RunDir, now
from orchestrate.local.run.checkpoints import Progress
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def rows(path: Path, count: int, seed: int = 0) -> Path:
    chance = random.Random(seed)
    words = ["red", "green", "blue", "round", "square", "large", "small", "old", "new", "fast"]
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            said = " ".join(chance.choices(words, k=chance.randint(1, 12)))
            messages = [
                {"role": "user", "content": f"Say it backwards: {said}"},
                {"role": "assistant", "content": " ".join(said.split()[::-1])},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def pairs(path: Path, count: int) -> Path:
    chance = random.Random(1)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(count):
            n = chance.randint(1, 99)
            row = {
                "prompt": [{"role": "user", "content": f"Is {n} even?"}],
                "preferred": [{"role": "assistant", "content": "yes" if n % 2 == 0 else "no"}],
                "rejected": [{"role": "assistant", "content": "I would rather not say"}],
            }
            out.write(json.dumps(row) + "\n")
    return path


Make = Callable[..., Session]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A session on 20 rows (32 pairs for DPO), 5 steps an epoch; keyword arguments change the job or its
    hyperparameters."""
    train = rows(tmp_path / "train.jsonl", 20)
    valid = rows(tmp_path / "valid.jsonl", 12, seed=9)
    preference = pairs(tmp_path / "pairs.jsonl", 32)

    def session(
        ref: str, *, adapter: dict[str, Any] | None = None, method: str = "sft", **hyper: Any
    ) -> Session:
        validation, engine, device = (hyper.pop(name, None) for name in ("validation", "engine", "device"))
        job = LocalJob(
            ref=ref,
            model=str(TINY),
            model_name="tiny-chat",
            train=str(hyper.pop("train", preference if method == "dpo" else train)),
            validation=str(valid) if validation else None,
            method=msgspec.convert({"type": method}, Method),
            adapter=AdapterSettings.from_dict({"type": "qlora", "r": 8, "alpha": 16.0, **(adapter or {})}),
            hyper=Hyper(
                **{"epochs": 2, "batch_size": 8 if method == "dpo" else 4, "learning_rate": 2e-3, **hyper}
            ),
            threads=1,
            engine=engine,
            device=device,
            created_at=now(),
        )
        run, _ = RunDir.make(tmp_path / "runs", job)
        return Session(run, job, lambda: None, lambda _: None)

    return session


def weights(session: Session) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in session.loop.parameters.items()}


def losses(session: Session, name: str = "train_loss") -> list[float]:
    return [p.values[name] for p in session.run.metrics()]


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_an_adapter_with_a_passport(make: Make) -> None:
    session = make("a", validation=True, epochs=4)
    session.loop.run()
    folder = session.publish()
    valid = [p.values["valid_loss"] for p in session.run.metrics() if "valid_loss" in p.values]
    assert len(valid) == 4
    assert valid[-1] < valid[0]
    provenance = json.loads((folder / "passport.json").read_bytes())
    assert provenance["trained"]["trained_tokens"] == session.loop.progress.trained_tokens > 0
    assert provenance["base_model_hash"].startswith("sha256:")
    assert {p.suffix for p in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}


@pytest.mark.slow
def test_evaluating_in_the_middle_changes_nothing(make: Make) -> None:
    without, between = make("a", epochs=1), make("b", epochs=1, validation=True, evals=5)
    without.loop.run()
    between.loop.run()
    assert losses(without) == losses(between)
    for name, value in weights(without).items():
        assert torch.equal(value, weights(between)[name]), name


@pytest.mark.slow
def test_the_seed_decides_everything(make: Make) -> None:
    first, second = (make(ref, epochs=1, adapter={"dropout": 0.2}) for ref in ("a", "b"))
    for session in (first, second):
        session.loop.restore()
        session.loop.run()
    assert losses(first) == losses(second)


@pytest.mark.slow
def test_small_micro_batches_and_packing_give_the_same_steps(make: Make) -> None:
    runs = [make("a", epochs=1), make("b", epochs=1, micro_batch=2), make("c", epochs=1, packing=True)]
    for session in runs:
        session.loop.run()
    whole, split, packed = (losses(s) for s in runs)
    assert split == pytest.approx(whole, rel=2e-2)
    assert packed == pytest.approx(whole, rel=2e-2)


@pytest.mark.slow
def test_rows_that_need_no_padding_come_in_the_order_of_chance_to_the_end_of_the_run(make: Make) -> None:
    first = make("a", epochs=1)
    train, loop = first.loop.train, first.loop
    assert loop.progress.window == train.window(512) == 1
    assert train.window(0) == 16
    taken: list[list[int]] = []
    step = loop._step
    loop._step = lambda batch: (taken.append(batch), step(batch))[1]  # type: ignore[method-assign]
    loop.run()
    assert taken == list(epoch_batches(train.lengths, 4, 0, 0, window=1))
    older = msgspec.json.decode(loop.progress.to_json())
    del older["window"]  # of a run that was begun before it was kept
    assert Progress.from_json(msgspec.json.encode(older)).window == 16
    assert Progress.from_json(loop.progress.to_json()) == loop.progress


def test_packed_rows_do_not_see_one_another(make: Make) -> None:
    """In 32 bits each row's hidden states are those that it has alone."""
    session = make("a", adapter={"type": "lora"})
    session.loaded.model.float().eval()
    data, device = session.loop.train, session.device
    alone = [collate(data, [i], 0, device) for i in range(6)]
    packed = collate(data, range(6), 0, device, packing=True)
    padded = collate(data, range(6), 0, device)
    with torch.no_grad():
        wanted = torch.cat([session.loop.objective.trained_hidden(b) for b in alone])
        for together in (packed, padded):
            states = session.loop.objective.trained_hidden(together)
            order = torch.argsort(together.row, stable=True)
            torch.testing.assert_close(states[order], wanted, atol=2e-4, rtol=1e-4)
    assert packed.ids.numel() < padded.ids.numel() * 3


@pytest.mark.slow
def test_the_fused_layer_does_what_peft_does(make: Make) -> None:
    session = make("a")
    data, loop = session.loop.train, session.loop
    ours = loop._gradients(list(range(8)))  # pyright: ignore[reportPrivateUsage]
    gradients = {n: p.grad.clone() for n, p in loop.parameters.items() if p.grad is not None}
    loop.optimizer.zero_grad()
    layers = [m for m in session.loaded.model.modules() if "forward" in vars(m) and hasattr(m, "lora_A")]
    assert len(layers) == 21
    for layer in layers:
        del layer.forward  # back to the class's own
    theirs = loop._gradients(list(range(8)))  # pyright: ignore[reportPrivateUsage]
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-2)
    for name, parameter in loop.parameters.items():
        assert parameter.grad is not None
        if "lora_B" in name:  # with B at zero, A has no gradient yet
            similar = torch.nn.functional.cosine_similarity(
                gradients[name].flatten(), parameter.grad.flatten(), dim=0
            )
            assert similar > 0.99, name
    assert fuse(session.loaded.model) == 21
    assert data.examples == 20


@pytest.mark.slow
def test_dpo_separates_the_answers(make: Make) -> None:
    session = make("a", method="dpo", epochs=3, learning_rate=1e-3)
    session.loop.run()
    first, last = session.run.metrics()[0].values, session.run.metrics()[-1].values
    # Before the first update policy and reference are the same model.
    assert first["train_loss"] == pytest.approx(0.6931, abs=2e-2)
    assert last["train_loss"] < 0.5
    assert last["train_reward_margin"] > 0.3
    assert last["train_reward_accuracy"] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [{"dora": True, "rslora": True}, {"type": "full"}])
def test_every_kind_of_adapter_trains(make: Make, adapter: dict[str, Any]) -> None:
    rate = 3e-4 if adapter.get("type") == "full" else 2e-3
    session = make("a", adapter=adapter, epochs=2, learning_rate=rate)
    session.loop.run()
    assert losses(session)[-1] < losses(session)[0]
    assert (session.publish() / "model.safetensors").is_file() == (adapter.get("type") == "full")


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "dropout"), [("fused", 0.0), ("fused", 0.1), ("plain", 0.1)])
def test_gradient_checkpointing_changes_no_bit(make: Make, engine: str, dropout: float) -> None:
    plain, checked = (
        make(
            ref,
            epochs=1,
            engine=engine,
            adapter={"dropout": dropout},
            gradient_checkpointing=ref == "checked",
        )
        for ref in ("plain", "checked")
    )
    # The one shortcut that checkpointing goes without: a product over fewer rows rounds otherwise.
    assert checked.loaded.trained_only is None and (plain.loaded.trained_only is None) == (engine == "plain")
    plain.loaded.trained_only = None
    for session in (plain, checked):
        session.loop.restore()
        session.loop.run()
    assert losses(checked) == losses(plain) and len(losses(plain)) == 5
    for name, value in weights(plain).items():
        assert torch.equal(weights(checked)[name], value), name


@pytest.mark.slow
def test_noise_trains(make: Make) -> None:
    plain, noisy = make("a", max_steps=1), make("b", neftune_alpha=1.0, epochs=3)
    for session in (plain, noisy):
        session.loop.run()
    assert losses(noisy)[0] != losses(plain)[0]
    assert losses(noisy)[-1] < losses(noisy)[0]


@pytest.mark.slow
def test_early_stopping_keeps_the_best_weights(make: Make) -> None:
    given = {"validation": True, "epochs": 10, "learning_rate": 0.05, "evals": 25}
    session = make("a", **given, early_stopping_patience=2)
    session.loop.run()
    assert session.loop.early_stopped
    assert session.loop.progress.step < session.loop.progress.total_steps
    valid = [p.values["valid_loss"] for p in session.run.metrics() if "valid_loss" in p.values]
    assert session.loop.valid is not None
    again = session.loop.objective.evaluate(session.loop.valid, session.loop.max_tokens)
    assert again["valid_loss"] == pytest.approx(min(valid), rel=1e-6)
    by_step = {p.step: p.values for p in session.run.metrics()}
    best = min((p for p in by_step if "valid_loss" in by_step[p]), key=lambda p: by_step[p]["valid_loss"])
    assert best < session.loop.progress.step
    kept = json.loads((session.publish() / "passport.json").read_bytes())["trained"]
    assert (kept["weights_of_step"], kept["steps"]) == (best, session.loop.progress.step)
    assert kept["metrics"]["valid_loss"] == min(valid)
    assert f"validation loss {min(valid):.4f} at step {best} (best weights)" in session.outcome
    last = by_step[max(by_step)]
    assert (last["result_step"], last["result_valid_loss"]) == (best, min(valid))
    assert last["valid_loss"] > min(valid)
    # A worker that died between the last step and the result has nothing more to train.
    again_after = make(
        "a", validation=True, epochs=10, learning_rate=0.05, evals=25, early_stopping_patience=2
    )
    again_after.loop.restore()
    again_after.loop.run()
    assert again_after.loop.progress.step == session.loop.progress.step
    assert again_after.loop.result == session.loop.result
    for name, value in weights(session).items():
        assert torch.equal(weights(again_after)[name], value), name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("paged_adamw_8bit", marks=pytest.mark.slow)])
def test_going_back_to_a_checkpoint_repeats_the_same_steps(make: Make, optimizer: str) -> None:
    session = make("a", optimizer=optimizer, checkpoints=2, adapter={"dropout": 0.1})
    session.loop.restore()
    session.loop.run()
    first = losses(session)
    shutil.rmtree(session.run.checkpoints / "step-00000010")
    again = make("a", optimizer=optimizer, checkpoints=2, adapter={"dropout": 0.1})
    again.loop.restore()
    assert again.loop.progress.step == 5
    again.loop.run()
    assert losses(again) == first


@pytest.mark.slow
def test_steps_say_how_long_and_when_and_the_best_weights_are_kept(make: Make) -> None:
    """By an optimizer whose averaged weights are those to evaluate and to keep; gone back to within an
    epoch."""

    def session() -> Session:
        return make(
            "a",
            validation=True,
            epochs=None,
            max_steps=13,
            eval_steps=5,
            checkpoint_steps=4,
            keep_best=True,
            optimizer="schedule_free_adamw",
            schedule="constant",
            learning_rate=2e-2,
            adapter={"dropout": 0.1},
        )

    first = session()
    first.loop.restore()
    first.loop.run()
    points = first.run.metrics()
    evaluated = {p.step: p.values["valid_loss"] for p in points if "valid_loss" in p.values}
    assert [p.step for p in points] == list(range(1, 14)) and list(evaluated) == [5, 10, 13]
    kept = sorted(p.name for p in first.run.checkpoints.iterdir())
    assert kept == [f"step-{n:08d}" for n in (4, 8, 12, 13)]
    assert first.loop.valid is not None
    ends = first.loop.objective.evaluate(first.loop.valid, first.loop.max_tokens)["valid_loss"]
    assert ends == pytest.approx(min(evaluated.values()), rel=1e-6)
    for name in kept[2:]:
        shutil.rmtree(first.run.checkpoints / name)
    again = session()
    again.loop.restore()
    assert again.loop.progress.step == 8
    again.loop.run()
    assert losses(again) == losses(first) and losses(again, "grad_norm") == losses(first, "grad_norm")
    for name, value in weights(first).items():
        assert torch.equal(value, weights(again)[name]), name


@pytest.mark.parametrize(
    ("asked", "steps"), first([({"max_steps": 4}, 4), ({}, 10), ({"max_steps": 99}, 10)])
)
def test_the_shorter_of_epochs_and_steps_ends_it(make: Make, asked: dict[str, int], steps: int) -> None:
    assert make("a", **asked).loop.progress.total_steps == steps


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_or_is_skipped(make: Make) -> None:
    stops, skips = make("a"), make("b", nan_policy="skip")
    for session in (stops, skips):
        with torch.no_grad():
            next(p for n, p in session.loop.parameters.items() if "lora_B" in n).fill_(float("nan"))
    with pytest.raises(RunFailed, match="not finite"):
        stops.loop.run()
    with pytest.raises(RunFailed, match="in a row"):
        skips.loop.run()
    assert any(e.type == "skipped" for e in skips.run.events())


def test_targets_that_the_model_does_not_have_are_named(make: Make) -> None:
    with pytest.raises(RunFailed, match="nonsense") as error:
        make("a", adapter={"targets": ["nonsense"]})
    assert "q_proj" in str(error.value.fix)


@pytest.mark.parametrize(
    "targets",
    first(
        [
            None,
            r".*layers\.[01]\.self_attn\.(q|o)_proj",
            "all-linear",
            ["q_proj", "v_proj"],
            ["mlp.down_proj"],
        ],
        2,
    ),
)
def test_the_plan_counts_the_adapter_that_the_targets_name(make: Make, targets: Any) -> None:
    session = make("a", adapter={"targets": targets})
    adapter = sum(p.numel() for p in session.loop.parameters.values())
    shape = ModelShape.of(session.folder.config)
    assert shape.adapter_parameters(8, targets=targets) == adapter
    assert session.memory_plan is not None
    assert session.memory_plan.parts["optimizer"] == 8 * adapter


@pytest.mark.slow
def test_too_little_memory_halves_the_micro_batch_not_the_batch(make: Make) -> None:
    session = make("a", epochs=1)
    reference = make("b", epochs=1)
    honest = session.loop.objective.run
    sizes: list[int] = []

    def tight(data: Any, examples: Any, total: float, *, backward: bool) -> Any:
        sizes.append(len(examples))
        if len(examples) > 3:
            raise torch.OutOfMemoryError("no room")
        return honest(data, examples, total, backward=backward)

    session.loop.objective.run = tight  # type: ignore[method-assign]
    session.loop.run()
    reference.loop.run()
    assert losses(session) == pytest.approx(losses(reference), rel=2e-2)
    assert max(sizes[-3:]) <= 3
    assert any(e.type == "memory" for e in session.run.events())


@pytest.mark.slow
def test_a_thread_that_cannot_compile_kernels_costs_nothing_but_time(make: Make) -> None:
    """In a thread in which oneDNN once had no memory for a kernel, it never compiles one again. The run is to
    the bit as one that only runs out of memory."""
    stuck = threading.local()

    def trained(ref: str, error: RuntimeError) -> Session:
        session = make(ref, epochs=1, validation=True)
        honest = session.loop.objective.run

        def tight(data: Any, examples: Any, total: float, *, backward: bool) -> Any:
            if len(examples) > 3 or getattr(stuck, "here", False):
                stuck.here = "primitive" in str(error)
                raise error
            return honest(data, examples, total, backward=backward)

        session.loop.objective.run = tight  # type: ignore[method-assign]
        with ThreadPoolExecutor(1) as alone:  # the threads of other tests can still compile
            alone.submit(session.loop.run).result()
            assert alone.submit(getattr, stuck, "here", None).result() is ("primitive" in str(error))
        return session

    one = trained("a", RuntimeError("could not create a primitive"))
    other = trained("b", torch.OutOfMemoryError("no room"))
    assert [e.message for e in one.run.events()] == [e.message for e in other.run.events()]
    assert losses(one) == losses(other)
    assert one.loop.result == other.loop.result
    there = weights(other)
    assert all(torch.equal(tensor, there[name]) for name, tensor in weights(one).items())


@pytest.mark.slow
def test_what_the_gpu_says_is_among_the_metrics(make: Make) -> None:
    """From a reader that stands in for the driver's tool: there is no GPU here. What it cannot say is left
    out, and the next reading is 15 seconds away."""
    session = make("a", epochs=1)
    assert session.loop.gpu is None
    session.loop.gpu = GpuMonitor(lambda: GpuLoad(gpu_temperature_c=61.0, gpu_use_percent=97.0))
    session.loop.gpu.poll()
    for thread in threading.enumerate():
        if thread.name == "gpu-load":
            thread.join()
    session.loop.run()
    first, *later = (p.values for p in session.run.metrics())
    assert (first["gpu_temperature_c"], first["gpu_use_percent"]) == (61, 97)
    assert "gpu_memory_bytes" not in first and "gpu_use_percent" not in later[0]


@pytest.mark.slow
def test_a_driver_that_hangs_stalls_no_step(make: Make) -> None:
    session, hangs = make("a", epochs=1), threading.Event()
    session.loop.gpu = GpuMonitor(lambda: GpuLoad(gpu_use_percent=float(hangs.wait(600))), seconds=0)
    session.loop.run()
    assert sum(thread.name == "gpu-load" for thread in threading.enumerate()) == 1
    assert not any("gpu_use_percent" in p.values for p in session.run.metrics())
    hangs.set()


def test_a_device_other_than_the_planned_one_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan asks the driver's tool for GPUs and the worker asks torch."""

    def said(session: Session) -> list[str]:
        return [e.level for e in session.run.events() if e.type == "device"]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "gpus", lambda: ())
    assert said(make("as-planned")) == []
    monkeypatch.setattr(machine, "gpus", lambda: (machine.Gpu(name="L4", memory_bytes=24 << 30),))
    assert said(make("without-cuda")) == ["warning"]
    assert said(make("asked", device="cpu")) == []


def test_every_row_is_seen_once_per_epoch_and_like_lengths_meet() -> None:
    import numpy as np

    lengths = np.random.default_rng(0).integers(10, 500, 1000)
    batches = epoch_batches(lengths, 16, seed=3, epoch=1)
    assert sorted(i for b in batches for i in b) == list(range(1000))
    assert (
        batches == epoch_batches(lengths, 16, seed=3, epoch=1) != epoch_batches(lengths, 16, seed=3, epoch=2)
    )
    padded = sum(len(b) * max(lengths[i] for i in b) for b in batches)
    assert padded < 1.12 * lengths.sum()
    for batch in batches:
        parts = micro_batches(batch, lengths, 2000, 6)
        assert sorted(i for p in parts for i in p) == sorted(batch)
        assert all(
            len(p) <= 6 and (len(p) == 1 or len(p) * max(lengths[i] for i in p) <= 2000) for p in parts
        )


def test_packed_seats_do_not_overlap() -> None:
    chance = random.Random(0)
    lengths = [chance.randint(1, 200) for _ in range(100)]
    taken: set[tuple[int, int]] = set()
    for (line, start), n in zip(pack(lengths, 256), lengths, strict=True):
        places = {(line, t) for t in range(start, start + n)}
        assert start + n <= 256 and not places & taken
        taken |= places
    assert max(line for line, _ in taken) + 1 <= 1.2 * sum(lengths) / 256 + 1


@pytest.mark.slow
def test_only_the_newest_checkpoints_are_kept_and_a_run_goes_on_from_them(make: Make) -> None:
    """With rows that are cut at their beginning, a minimal rate, and groups that learn apart."""
    settings = {"save_total_limit": 2, "checkpoint_steps": 2, "warmup_steps": 2, "min_lr_ratio": 0.5}
    session = make(
        "a",
        adapter={"loraplus_lr_ratio": 4.0},
        schedule="cosine",
        truncation="left",
        max_seq_length=32,
        **settings,
    )
    session.loop.run()
    kept = [p.name for p in sorted(session.run.checkpoints.glob("step-*"))]
    assert kept == ["step-00000008", "step-00000010"]
    [*_, last] = session.run.metrics()
    values = last.values
    assert values["learning_rate"] > 0.5 * 2e-3
    assert values["learning_rate_lora_B"] == pytest.approx(4 * values["learning_rate_lora_A"])
    whole = values["grad_norm_lora_A"] ** 2 + values["grad_norm_lora_B"] ** 2
    assert whole == pytest.approx(values["grad_norm"] ** 2, rel=1e-3)
    shutil.rmtree(session.run.checkpoints / kept[-1])
    before = weights(session)
    again = Session(session.run, session.job, lambda: None, lambda _: None)
    again.loop.restore()
    assert again.loop.progress.step == 8
    again.loop.run()
    assert all(torch.equal(value, weights(again)[name]) for name, value in before.items())
