"""Training on unpaired answers (KTO): the estimate of the divergence, its reference, and going on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sending import upload
from tests.unit.local.sessions import TINY, answers, make_session

from orchestrate.data import TrainingData
from orchestrate.local.encoding import Encoded, decode_row
from orchestrate.local.encoding.encoded import stacked
from orchestrate.local.objectives.dpo import Mismatch, UnpairedObjective, with_mismatched
from orchestrate.local.run.session import Session
from orchestrate.providers import registry
from orchestrate.settings import config
from orchestrate.spec import DPO, JobSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
KTO = {"type": "dpo", "loss": "kto"}


def values(session: Session, name: str) -> list[float]:
    return [p.values[name] for p in session.run.metrics() if name in p.values]


@pytest.mark.slow
def test_kto_raises_the_good_answers_above_the_bad_ones(tmp_path: Path) -> None:
    rows = answers(tmp_path / "rows.jsonl", 36)
    valid = str(answers(tmp_path / "valid.jsonl", 12))
    session = make_session(tmp_path, rows, method=KTO, validation=valid, hyper={"epochs": 4})
    session.loop.run()
    loss, margin = values(session, "train_loss"), values(session, "train_reward_margin")
    assert loss[0] == pytest.approx(0.5, abs=0.02), "nothing is learnt yet: 1 - sigmoid(0)"
    assert margin[-1] > 0.3 and loss[-1] < 0.45
    last = session.loop.progress.metrics
    assert last["valid_preferred_reward"] > last["valid_rejected_reward"]
    assert last["valid_reward_margin"] == pytest.approx(
        last["valid_preferred_reward"] - last["valid_rejected_reward"]
    )
    assert min(values(session, "train_kl")) >= 0.0 and {"valid_loss", "valid_kl"} <= last.keys()


@pytest.mark.slow
def test_small_micro_batches_give_the_same_steps(tmp_path: Path) -> None:
    """The divergence is that of the whole batch, however the batch is cut."""
    rows = answers(tmp_path / "rows.jsonl", 24)
    found: list[tuple[list[float], list[float]]] = []
    for ref, hyper in (("a", {}), ("b", {"micro_batch": 2}), ("c", {"packing": True})):
        session = make_session(tmp_path, rows, method=KTO, ref=ref, hyper={"epochs": 1, **hyper})
        session.loop.run()
        found.append((values(session, "train_loss"), values(session, "train_kl")))
    (loss, kl), *others = found
    assert len(loss) == 3
    for other_loss, other_kl in others:
        assert other_loss == pytest.approx(loss, rel=2e-2)
        assert other_kl == pytest.approx(kl, abs=0.2)


@pytest.mark.slow
def test_weights_scale_the_loss_of_their_label(tmp_path: Path) -> None:
    file = answers(tmp_path / "rows.jsonl", 12)
    found: dict[str, float] = {}
    for name in ("", "desirable_weight", "undesirable_weight"):
        method = KTO | ({name: 2.0} if name else {})
        session = make_session(tmp_path, file, method=method, ref=f"r{name}", hyper={"batch_size": 12})
        rows = session.loop.train
        sums = session.loop.objective.gradients(rows, rows.batches(12, 0, 0)[0], 4096, 12)
        found[name] = sums.loss
    # At the beginning each answer's loss is a half: 8 good ones, 4 bad ones.
    assert found[""] == pytest.approx(6, abs=0.1)
    assert found["desirable_weight"] == pytest.approx(10, abs=0.1)
    assert found["undesirable_weight"] == pytest.approx(8, abs=0.1)


@pytest.mark.slow
def test_going_on_keeps_the_reference_of_the_beginning(tmp_path: Path) -> None:
    data = answers(tmp_path / "rows.jsonl", 32)
    options: dict[str, Any] = {
        "method": KTO,
        "adapter": {"type": "full"},
        "hyper": {"learning_rate": 1e-4, "epochs": 2, "checkpoints": 2},
    }
    whole = make_session(tmp_path, data, **options)
    whole.loop.restore()
    whole.loop.run()
    first = values(whole, "train_loss"), values(whole, "train_kl")
    shutil.rmtree(whole.run.checkpoints / "step-00000008")
    again = make_session(tmp_path, data, **options)
    again.loop.restore()
    assert again.loop.progress.step == 4
    again.loop.run()
    assert (values(again, "train_loss"), values(again, "train_kl")) == first


@pytest.mark.slow
def test_a_reference_that_was_broken_off_is_finished_and_the_same(tmp_path: Path) -> None:
    session = make_session(tmp_path, answers(tmp_path / "rows.jsonl", 32), method=KTO)
    objective, rows = session.loop.objective, session.loop.train
    assert isinstance(objective, UnpairedObjective) and rows.mismatched is not None
    assert rows.mismatched.shape == (2, 32)
    assert isinstance(rows.mismatched, np.memmap) and isinstance(rows.before, np.memmap)
    looks = 0

    def interrupt() -> None:
        nonlocal looks
        looks += 1
        if looks == 6:
            raise KeyboardInterrupt

    folder = tmp_path / "again"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        with_mismatched(objective, rows, folder, 2, 4096, interrupt)
    assert 0 < np.isnan(np.load(folder / "mismatched.npy")).sum() < rows.mismatched.size
    finished = with_mismatched(objective, rows, folder, 2, 4096, lambda: None)
    assert finished.mismatched is not None
    assert np.array_equal(finished.mismatched, rows.mismatched)


def test_each_prompt_gets_the_answer_before_it() -> None:
    rows = stacked([Encoded([n, n, n + 1, 90 + n], [0.0, 0.0, 1.0, 1.0]) for n in (10, 20, 30)])
    mixed = Mismatch(3, 0).rows(rows, [2, 0, 1])
    assert [mixed.row(i)[0].tolist() for i in range(3)] == [
        [30, 30, 21, 110],
        [10, 10, 31, 120],
        [20, 20, 11, 100],
    ]
    assert all(mixed.row(i)[1].tolist() == [0, 0, 1, 1] for i in range(3))
    alone = Mismatch(3, 0).rows(rows, [0])
    assert alone.row(0)[0].tolist() == [10, 10, 31, 120], "its own answer would say nothing"
    cut = Mismatch(3, 0, limit=2).rows(rows, [0, 1])
    assert [len(cut.row(i)[0]) for i in range(2)] == [2, 2]


def test_rows_are_read_as_the_backend_writes_them(tmp_path: Path) -> None:
    """From the user's file through `upload` to the engine's rows, a tool and a thought included."""
    source = answers(tmp_path / "rows.jsonl", 6)
    tool = '{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}'
    text = source.read_text().replace('"label": true}', f'"label": true, "tools": [{tool}]}}')
    source.write_text(text.replace('"content": "yes"', '"content": "yes", "reasoning": "2 divides it"'))
    provider = registry.make("local", config.load(env={"ORCHESTRATE_HOME": str(tmp_path)}, cwd=tmp_path))
    data = TrainingData.open(str(source))
    spec = JobSpec(model=str(TINY), train=str(source), method=DPO(loss="kto"))
    remote = upload(provider, spec, data)
    examples = [decode_row(line) for line in Path(remote.train_id).read_bytes().splitlines()]
    assert examples == list(data.train.examples()) and len(examples) == 6
    assert not [p for p in provider.check(spec, data, provider.translate(spec)) if p.severity == "error"]


def test_a_batch_of_one_is_refused_beforehand(tmp_path: Path) -> None:
    provider = registry.make("local", config.load(env={"ORCHESTRATE_HOME": str(tmp_path)}, cwd=tmp_path))
    spec = JobSpec(model=str(TINY), train="rows.jsonl", method=DPO(loss="kto"), batch_size=1)
    assert [s.name for s in provider.translate(spec).refused] == ["batch_size"]
