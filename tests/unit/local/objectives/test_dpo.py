"""Training on preferences, and the reference that is made once."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sending import upload
from tests.unit.local.sessions import TINY, make_session, pairs

from orchestrate.data import TrainingData
from orchestrate.local.encoding import Template, decode_row
from orchestrate.local.encoding.encoded import EncodedRows, encode_file
from orchestrate.local.model.loader import load_tokenizer
from orchestrate.local.objectives.dpo import PairObjective, open_kept, with_reference
from orchestrate.local.run.session import Session
from orchestrate.providers import registry
from orchestrate.settings import config
from orchestrate.spec import DPO, JobSpec

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def values(session: Session, name: str) -> list[float]:
    return [p.values[name] for p in session.run.metrics()]


@pytest.mark.slow
def test_dpo_of_all_weights_separates_the_answers_with_one_copy_of_the_model(tmp_path: Path) -> None:
    session = make_session(
        tmp_path,
        pairs(tmp_path / "pairs.jsonl", 32),
        method={"type": "dpo"},
        adapter={"type": "full"},
        hyper={"learning_rate": 1e-4, "epochs": 3},
    )
    session.loop.run()
    loss = values(session, "train_loss")
    assert loss[0] == pytest.approx(math.log(2), abs=1e-3)
    assert loss[-1] < 0.5
    assert values(session, "train_reward_accuracy")[-1] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        {"loss": "orpo"},
        pytest.param({"simpo_gamma": 0.5, "beta": 2.0}, marks=pytest.mark.slow),
        {"rpo_alpha": 0.5},
        pytest.param({"normalize_by_length": True, "beta": 2.0}, marks=pytest.mark.slow),
    ],
    ids=["orpo", "simpo", "rpo", "by length"],
)
def test_each_loss_learns_to_prefer(tmp_path: Path, method: dict[str, Any]) -> None:
    session = make_session(
        tmp_path,
        pairs(tmp_path / "pairs.jsonl", 32),
        method={"type": "dpo", **method},
        hyper={"epochs": 3},
    )
    free = method.keys() & {"loss", "simpo_gamma"}
    assert (session.loop.train.reference is None) is bool(free)
    session.loop.run()
    loss, margin = values(session, "train_loss"), values(session, "train_reward_margin")
    assert loss[-1] < 0.8 * loss[0] and margin[-1] > margin[0]
    assert values(session, "train_reward_accuracy")[-1] > 0.9


@pytest.mark.slow
def test_going_on_keeps_the_reference_of_the_beginning(tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs.jsonl", 32)
    options: dict[str, Any] = {
        "method": {"type": "dpo"},
        "adapter": {"type": "full"},
        "hyper": {"learning_rate": 1e-4, "epochs": 2, "checkpoints": 2},
    }
    whole = make_session(tmp_path, data, **options)
    whole.loop.restore()
    whole.loop.run()
    first = values(whole, "train_loss")
    shutil.rmtree(whole.run.checkpoints / "step-00000008")
    again = make_session(tmp_path, data, **options)
    again.loop.restore()
    assert again.loop.progress.step == 4
    again.loop.run()
    assert values(again, "train_loss") == first


@pytest.mark.slow
def test_the_reference_is_the_adapter_that_training_goes_on_from(tmp_path: Path) -> None:
    data = pairs(tmp_path / "pairs.jsonl", 32)
    hyper = {"learning_rate": 1e-3, "epochs": 3}
    before = make_session(tmp_path, data, method={"type": "dpo"}, hyper=hyper, ref="before")
    before.loop.run()
    assert values(before, "train_reward_margin")[-1] > 0.3
    folder = before.publish()
    after = make_session(
        tmp_path,
        data,
        method={"type": "dpo"},
        hyper={**hyper, "max_steps": 1},
        ref="after",
        continue_from=str(folder),
    )
    after.loop.run()
    assert values(after, "train_loss")[0] == pytest.approx(math.log(2), abs=2e-2)


@pytest.mark.slow
def test_a_reference_that_was_broken_off_is_finished_and_the_same(tmp_path: Path) -> None:
    session = make_session(tmp_path, pairs(tmp_path / "pairs.jsonl", 32), method={"type": "dpo"})
    objective, rows = session.loop.objective, session.loop.train
    assert isinstance(objective, PairObjective) and rows.reference is not None
    looks = 0

    def interrupt() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise KeyboardInterrupt

    bare, folder = EncodedRows(rows.ids, rows.weights, rows.offsets, pairs=True), tmp_path / "again"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        with_reference(objective, bare, folder, 200, interrupt)
    torn = np.load(folder / "reference.npy")
    assert 0 < np.isnan(torn).sum() < len(torn)
    finished = with_reference(objective, bare, folder, 200, lambda: None)
    whole = tmp_path / "whole"
    whole.mkdir()
    wanted = with_reference(objective, bare, whole, 200, lambda: None)
    assert finished.reference is not None and wanted.reference is not None
    assert np.array_equal(finished.reference, wanted.reference)
    np.testing.assert_allclose(finished.reference, rows.reference, rtol=0.05)


def test_pairs_are_read_as_the_backend_writes_them(tmp_path: Path) -> None:
    """From the user's file through `upload` to the engine's rows."""
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    rows = [
        {
            "input": {"messages": [{"role": "user", "content": f"Is {n} even?"}], "tools": [tool]},
            "preferred_output": [{"role": "assistant", "content": "yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for n in range(10)
    ]
    source = tmp_path / "pairs.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    provider = registry.make("local", config.load(env={"ORCHESTRATE_HOME": str(tmp_path)}, cwd=tmp_path))
    data = TrainingData.open(str(source))
    spec = JobSpec(model="tiny-chat", train=str(source), method=DPO())
    remote = upload(provider, spec, data)
    examples = [decode_row(line) for line in Path(remote.train_id).read_bytes().splitlines()]
    assert examples == list(data.train.examples())
    encoded, report = encode_file(
        Path(remote.train_id),
        Template(load_tokenizer(TINY)),
        tmp_path / "encoded",
        pairs=True,
    )
    assert (encoded.examples, report.dropped) == (10, 0)


def test_a_file_of_references_that_was_being_made_as_the_worker_died_holds_no_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be taken for log-probabilities."""
    path = tmp_path / "reference.npy"
    make = np.lib.format.open_memmap

    def killed(*given: Any, **more: Any) -> None:
        make(*given, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(np.lib.format, "open_memmap", killed)
        open_kept(path, (3, 4))
    kept = open_kept(path, (3, 4))
    assert np.isnan(kept).all()
    kept[1] = 2
    kept.flush()
    assert np.array_equal(open_kept(path, (3, 4))[1], [2, 2, 2, 2])
