"""What may vary: as it is written on a command line, and as a trial's spec has it."""

from __future__ import annotations

import pytest

from orchestrate.errors import UsageError
from orchestrate.runs.sweep import space


def test_values_are_read_as_numbers_words_and_lists() -> None:
    found = space.parse(
        ["learning_rate=1e-4,2e-4,0.001", "adapter.r=8,16", "method=sft,[a, b]", "packing=true,false"], []
    )
    assert found.choices == {
        "learning_rate": (1e-4, 2e-4, 0.001),
        "adapter.r": (8, 16),
        "method": ("sft", ["a", "b"]),
        "packing": (True, False),
    }
    assert found.size == len(list(found.combinations())) == 3 * 2 * 2 * 2


@pytest.mark.parametrize(
    ("grid", "ranges", "told"),
    [
        ([], [], "nothing varies"),
        (["learning_rate"], [], "needs comma-separated values"),
        (["learning_rate="], [], "needs comma-separated values"),
        (["epochs=1,1"], [], "twice"),
        (["epochs=1,{"], [], "not a valid YAML value"),
        (["epochs=1,2", "epochs=3"], [], "epochs is given twice"),
        ([], ["epochs=1:2", "epochs=2:3"], "epochs is given twice"),
        (["train=a.jsonl,b.jsonl"], [], "must be the same for all trials"),
        (["validation=a.jsonl,b.jsonl"], [], "must be the same for all trials"),
        (["private=true,false"], [], "must be the same for all trials"),
        (["epochs=1,2"], ["epochs=1:2"], "in --grid and in --range"),
        ([], ["epochs"], "NAME=LOW:HIGH"),
        ([], ["epochs=3:1"], "NAME=LOW:HIGH"),
        ([], ["epochs=1:nan"], "NAME=LOW:HIGH"),
        (
            [],
            ["learning_rate=0:1:log"],
            "--range must be NAME=LOW:HIGH or NAME=LOW:HIGH:log, with LOW below HIGH (and above 0 for log)",
        ),
        ([], ["learning_rate=1:2:lin"], "NAME=LOW:HIGH"),
    ],
)
def test_what_is_none_is_refused(grid: list[str], ranges: list[str], told: str) -> None:
    with pytest.raises(UsageError) as caught:
        space.parse(grid, ranges)
    assert told in str(caught.value)


def test_a_trial_changes_what_it_names_and_nothing_else() -> None:
    spec = {"model": "m", "train": "rows.jsonl", "adapter": "lora", "epochs": 3}
    made = space.applied(spec, {"adapter.r": 8, "learning_rate": 1e-4, "provider": "local"})
    assert made == {
        "model": "m",
        "train": "rows.jsonl",
        "adapter": {"type": "lora", "r": 8},
        "epochs": 3,
        "learning_rate": 1e-4,
    }
    assert spec == {"model": "m", "train": "rows.jsonl", "adapter": "lora", "epochs": 3}


def test_a_share_of_the_rows_is_a_seeded_sample_of_each_file() -> None:
    spec = {"model": "m", "train": [{"path": "a.jsonl", "weight": 2}, "b.jsonl"]}
    made = space.applied(spec, {}, share=0.25, seed=7)
    assert made["train"] == [
        {"path": "a.jsonl", "weight": 0.5, "seed": 7},
        {"path": "b.jsonl", "weight": 0.25, "seed": 7},
    ]
