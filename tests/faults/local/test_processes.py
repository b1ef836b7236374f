"""Several processes at one run, over Gloo: they train what one trains, and when one is killed the run goes on
from its newest checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file
from tests.faults.local.test_resume import KINDS, of_kind
from tests.faults.local.test_workers import (  # noqa: F401  fixtures
    curve,
    files,
    finish,
    home,
    job,
    small,
    wait,
)
from tests.paths import TINY
from tests.workers import Nursery

from orchestrate.local import LocalJob, RunDir, launch, resume
from orchestrate.local.run.parallel import split
from orchestrate.serving.export.forms import WeightOptions, export
from orchestrate.serving.tuned import TunedModel

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def of(job: LocalJob, processes: int, *, sharded: bool = False, **adapter: Any) -> LocalJob:  # noqa: F811
    hyper = msgspec.structs.replace(job.hyper, processes=processes, sharded=sharded)
    given = msgspec.structs.replace(job.adapter, **adapter)
    return msgspec.structs.replace(job, ref=f"orc-{processes}", hyper=hyper, adapter=given, precision="fp32")


def helpers(run: RunDir) -> list[int]:
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                ended = (entry / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
            except OSError:
                continue
            if b"orchestrate.local.run.helper" in words and str(run.path).encode() in words and not ended:
                found.append(int(entry.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sharded"), [("qlora", False), ("dpo", False), ("qlora", True), ("full", True)]
)
def test_two_processes_train_what_one_trains(
    kind: str,
    sharded: bool,
    job: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    nursery: Nursery,
) -> None:
    """Each step's loss to a thousandth of itself, each weight to 1e-3 after 15 steps or more: sums in another
    order are rounded otherwise, and AdamW makes as much of a small gradient as of a large one."""
    base = of_kind(job, KINDS.get(kind, {}))
    # In shares the engine's shortcuts are off, and rows that are padded come in another order.
    engine = "plain" if sharded else None
    alone = launch(msgspec.structs.replace(of(base, 1, dropout=None), engine=engine), home, nursery.start)
    runs = [alone, launch(of(base, 2, sharded=sharded, dropout=None), home, nursery.start)]
    assert [finish(run) for run in runs] == ["succeeded"] * 2, runs[1].log.read_text()
    one, two = (curve(run) for run in runs)
    assert len(one) == len(two) > 10
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-5)
    folder = "full" if base.adapter.full else "adapter"
    [name] = [path.name for path in (runs[0].path / folder).glob("*.safetensors")]
    before, after = (load_file(run.path / folder / name) for run in runs)
    assert before.keys() == after.keys()
    for key, weights in before.items():  # all weights are kept in bf16, which has 8 bits
        share = 2**-7 if base.adapter.full else 0.0
        assert weights.float().allclose(after[key].float(), rtol=share, atol=1e-3), key
    [way] = [event.message for event in runs[1].events() if event.type == "processes"]
    assert ("FSDP" in way) is sharded
    tokens = [run.state().trained_tokens for run in runs]
    assert tokens[0] == tokens[1]
    wait(lambda: not helpers(runs[1]))
    if sharded and kind == "qlora":
        merged_and_exported(alone.path / "adapter", runs[1].path / "adapter", home.parent)


def merged_and_exported(one: Path, two: Path, folder: Path) -> None:
    """What was trained in shares, by the words of plain transformers and PEFT: the adapter that is exported
    loads, our merge says what PEFT's says, and both what the run of one process says, to a fiftieth of what
    training changed."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    tuned = TunedModel("two", two, str(TINY), "adapter")
    adapter = export(tuned, "peft", folder / "peft").folder
    merged = export(tuned, "merged", folder / "merged", WeightOptions(dtype="fp32")).folder
    words = torch.arange(5, 69).reshape(2, 32)

    def said(path: str | Path, laid_on: str | Path | None = None) -> torch.Tensor:
        model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        if laid_on is not None:
            model = PeftModel.from_pretrained(model, laid_on)
        with torch.no_grad():
            return model.eval()(words).logits

    ours, theirs = said(merged), said(TINY, adapter)
    assert ours.allclose(theirs, rtol=0, atol=1e-4)
    base, alone = said(TINY), said(TINY, one)
    changed = float((alone - base).abs().max())
    assert changed > 0.1
    assert float((theirs - alone).abs().max()) < changed / 50


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
def test_one_that_is_killed_ends_all_and_the_run_goes_on(
    sharded: bool,
    small: LocalJob,  # noqa: F811
    home: Path,  # noqa: F811
    nursery: Nursery,
) -> None:
    """To the bit as if nothing had happened, with dropout: what each draws is told by seed, step and rank. In
    shares the last worker and its helper are started as anywhere else."""
    whole = launch(of(small, 2, sharded=sharded), home, nursery.start)
    assert finish(whole) == "succeeded", whole.log.read_text()
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    helper_dies = nursery.mortal(chance.randint(2, 6), chance.random(), "helper killed")
    killed = launch(msgspec.structs.replace(of(small, 2, sharded=sharded), ref="orc-b"), home, helper_dies)
    assert finish(killed) == "interrupted", f"seed {seed}"
    assert any("exited with code -9" in event.message for event in killed.events())
    wait(lambda: not helpers(killed))
    assert resume(killed, nursery.mortal(chance.randint(9, 15), chance.random(), again=True))
    wait(lambda: bool(helpers(killed)))
    assert finish(killed) == "interrupted", f"seed {seed}"
    wait(lambda: not helpers(killed))
    assert resume(killed, None if sharded else nursery.start)
    assert finish(killed) == "succeeded", killed.log.read_text()
    assert curve(killed) == curve(whole), f"seed {seed}"
    weights = "adapter/adapter_model.safetensors"
    assert (killed.path / weights).read_bytes() == (whole.path / weights).read_bytes(), f"seed {seed}"
    resumed = [event for event in killed.events() if event.type == "resumed"]
    assert len(resumed) == 2 and all((event.step or 0) > 0 for event in resumed), f"seed {seed}"
    wait(lambda: not helpers(killed))


def test_shares_have_about_as_many_tokens_each() -> None:
    """By hand: 9, 5, 4, 4, 2 are 9 + 2 + ... the longest first, each to whoever has least."""
    assert split([10, 11, 12, 13, 14], [5, 4, 9, 2, 4], 2) == ((12, 14), (10, 11, 13))
    assert split([7], [3], 3) == ((7,), (), ())
