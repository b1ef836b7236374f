"""A shortcut that a model does not bear is left out, and the run says so and trains."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tests.unit.local.families import make
from tests.unit.local.model.shortcuts.test_line import chats
from tests.unit.local.sessions import make_session

from orchestrate.errors import RunFailed
from orchestrate.local import model as engines
from orchestrate.local.model import loader
from orchestrate.local.model.shortcuts import accelerators
from orchestrate.local.model.shortcuts.probes import line_limit, packs
from orchestrate.local.model.shortcuts.selection import turn_on
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture
def session(tmp_path: Path) -> Session:
    adapter = {"type": "lora"}
    return make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"}, adapter=adapter)


def again(session: Session, **changes: Any) -> Any:
    """The session's model as if it had just been loaded."""
    from orchestrate.local.model.shortcuts.kernels import undo
    from orchestrate.local.model.shortcuts.selection import unfuse

    unfuse(session.loaded.model)
    undo(session.loaded.inner)
    fresh = {"line_limit": 0, "trained_only": None, "left_out": {}, **changes}
    return dataclasses.replace(session.loaded, **fresh)


def last_mlp(session: Session) -> Any:
    return session.loaded.inner.get_decoder().layers[-1].mlp


@pytest.mark.slow
def test_attention_with_dropout_is_trained_in_padded_rows(tmp_path: Path) -> None:
    """Which it is in training mode only: a look at the model in evaluation mode does not show it."""
    folder = make("seed_oss", tmp_path / "model", attention_dropout=0.1, residual_dropout=0.1)
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", 12),
        method={"type": "sft"},
        adapter={"type": "lora"},
        model=str(folder),
        hyper={"epochs": 1},
    )
    assert session.loaded.line_limit == 0 and not session.loaded.shares
    attention, told = (e.message for e in session.run.events() if e.type == "left_out")
    assert told.startswith(
        "without several rows packed into one sequence: the model raises NotImplementedError"
    )
    assert attention.startswith("without CPU kernels for attention: the model uses a custom attention or")
    (engine,) = (e for e in session.run.events() if e.type == "engine")
    assert "attention" not in str(engine.data["in_use"]) and "norms for a CPU" in str(engine.data["in_use"])
    session.loop.run()
    assert len(session.run.metrics()) == 2


def test_the_least_sight_of_another_row_is_one_too_much(session: Session) -> None:
    """A millionth of what the token before says: far below rounding, as with a state that decays."""
    loaded, mlp = session.loaded, last_mlp(session)
    assert line_limit(loaded)[0] > 0 and packs(loaded) is None
    original = mlp.forward
    mlp.forward = lambda x: original(x) + 1e-6 * torch.roll(x, 1, 1)
    assert line_limit(loaded) == (0, "a packed row attends to another row's tokens")
    assert packs(loaded) == "a packed row attends to another row's tokens"


def test_what_ends_with_our_layers_is_trained_with_the_libraries(session: Session) -> None:
    mlp = last_mlp(session)
    original = mlp.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if "forward" in vars(mlp.gate_proj) and mlp.training:
            raise RuntimeError("no such layer\nthe second line")
        return original(x)

    loaded = again(session)
    mlp.forward = forward
    turn_on(loaded, session.job)
    assert loaded.left_out == {"fused LoRA": "the model raises RuntimeError: no such layer"}
    assert "forward" not in vars(mlp.gate_proj)
    assert loaded.line_limit > 0  # the others are on


def test_a_model_that_cannot_be_trained_says_so_before_the_first_step(session: Session) -> None:
    mlp = last_mlp(session)
    original = mlp.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        if mlp.training:
            raise ValueError("only for answers")
        return original(x)

    loaded = again(session)
    mlp.forward = forward
    with pytest.raises(RunFailed, match="cannot train this model: the model raises ValueError: only for"):
        turn_on(loaded, session.job)


@pytest.mark.slow
def test_packing_that_a_model_does_not_bear_is_told(tmp_path: Path) -> None:
    folder = make("opt", tmp_path / "model")
    data = chats(tmp_path / "t.jsonl", 12)
    hyper = {"packing": True}
    tell = {
        name: make_session(
            tmp_path, data, method={"type": "sft"}, adapter={"type": "lora"}, ref=name, hyper=hyper, **job
        )
        for name, job in {
            "plain": {"model": str(folder), "engine": "plain"},
            "line": {"model": str(folder)},
            "tiny": {},
        }.items()
    }
    told = {n: [e for e in s.run.events() if e.type == "left_out"] for n, s in tell.items()}
    (gains,) = told.pop("tiny")
    assert gains.message.startswith("without packed rows: no benefit on a CPU")
    assert {e.level for events in told.values() for e in events} == {"warning"}
    assert told["plain"][0].message.startswith(
        "packing is off, so rows of similar length are padded instead: packed"
    )
    assert told["line"][0].message.startswith(
        "packing only rows of up to 1024 tokens and padding longer ones: packed"
    )
    objective, rows = tell["plain"].loop.objective, tell["plain"].loop.train
    assert len(objective.collate(rows, range(6)).ids) == 6  # side by side
    packed = tell["tiny"]
    packed.loaded.line_limit = 0
    assert len(packed.loop.objective.collate(packed.loop.train, range(6)).ids) == 6
    packed.loop.objective.packing = True  # as on a GPU
    assert len(packed.loop.objective.collate(packed.loop.train, range(6)).ids) < 6


def test_a_layer_that_does_not_compile_runs_as_it_is(session: Session) -> None:
    loaded = again(session, choice=engines.SettingChoice("compile", "set in the spec"))

    def broken(*_args: Any, **_kwargs: Any) -> Any:
        raise RuntimeError("no kernel for this")

    for layer in loaded.inner.get_decoder().layers:
        # As torch's own `compile` leaves it; compiling itself takes a minute on a CPU.
        layer.compile = lambda layer=layer, **_: setattr(layer, "_compiled_call_impl", broken)
    turn_on(loaded, session.job)
    assert loaded.choice.name == "plain"
    assert loaded.left_out == {"torch.compile": "the model raises RuntimeError: no kernel for this"}
    assert loaded.hidden(torch.tensor([[5, 6, 7]])).shape[:2] == (1, 3)


def with_liger(monkeypatch: pytest.MonkeyPatch, **known: Callable[..., None]) -> None:
    """A sandbox for the package, which needs a GPU, with kernels for the families that are `known`."""
    names = ["liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.monkey_patch"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    vars(sys.modules[names[-1]])["MODEL_TYPE_TO_APPLY_LIGER_FN"] = known
    there = engines.SettingChoice("liger", "liger-kernel is installed and there is a GPU")
    monkeypatch.setattr(loader, "choose", lambda asked, *_: there if asked != "fused" else engines.PLAIN)


@pytest.mark.parametrize("engine", [None, "liger"])
def test_a_family_that_liger_does_not_know_is_trained_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str | None
) -> None:
    with_liger(monkeypatch)
    data = chats(tmp_path / "t.jsonl", 12)
    if engine:
        with pytest.raises(accelerators.Unfit, match="no kernels for llama"):
            make_session(tmp_path, data, method={"type": "sft"}, engine=engine)
        return
    session = make_session(tmp_path, data, method={"type": "sft"})
    assert session.loaded.left_out == {"Liger": "Liger has no kernels for llama models"}


@pytest.mark.parametrize("fault", ["other states", pytest.param("an error", marks=pytest.mark.slow)])
def test_what_liger_replaced_is_put_back_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Liger replaces classes and functions in transformers' module of the family, for the entire process."""
    from transformers.models.llama import modeling_llama

    class Norm(modeling_llama.LlamaRMSNorm):
        def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden_states)

    def apply(model: Any, cross_entropy: bool, fused_linear_cross_entropy: bool) -> None:
        assert not cross_entropy and not fused_linear_cross_entropy
        module: Any = modeling_llama
        module.LlamaRMSNorm = Norm
        module.apply_rotary_pos_emb = lambda q, k, *_, **__: (q, k)
        module.LlamaMLP.forward = lambda self, x: x
        module.liger_was_here = True
        model.get_decoder().norm.__class__ = Norm
        if fault == "an error":
            raise RuntimeError("no Triton here")

    with_liger(monkeypatch, llama=apply)
    before = dict(vars(modeling_llama)), modeling_llama.LlamaMLP.forward
    data = chats(tmp_path / "t.jsonl", 12)
    loaded = make_session(tmp_path, data, method={"type": "sft"}).loaded
    assert (dict(vars(modeling_llama)), modeling_llama.LlamaMLP.forward) == before
    assert not any(isinstance(module, Norm) for module in loaded.inner.modules())
    reason = (
        "RuntimeError: no Triton here"
        if fault == "an error"
        else "Liger changes the model's hidden states (relative distance"
    )
    assert reason in loaded.left_out["Liger"] and reason in loaded.choice.reason
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = make_session(tmp_path, data, method={"type": "sft"}, ref="plain", engine="plain").loaded
    assert torch.equal(loaded.hidden(ids), plain.hidden(ids))
    with pytest.raises(accelerators.Unfit, match=re.escape(reason)):
        make_session(tmp_path, data, method={"type": "sft"}, ref="asked", engine="liger")
    assert dict(vars(modeling_llama)) == before[0]


def test_liger_stays_where_the_model_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The family is found by Liger's own table, which names those whose text part is a model of its own."""
    seen: list[Any] = []
    with_liger(monkeypatch, llama=lambda model: seen.append(model))
    session = make_session(tmp_path, chats(tmp_path / "t.jsonl", 12), method={"type": "sft"})
    assert session.loaded.choice.name == "liger" and seen == [session.loaded.inner]


@pytest.mark.parametrize(
    ("family", "named"),
    [("qwen3_5_text", "qwen3_5_text"), ("llama4_text", "llama4_text"), ("qwen2_vl", "qwen2_vl_text")],
)
def test_a_family_is_found_by_the_name_of_its_text_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, named: str
) -> None:
    """As `MODEL_TYPE_TO_APPLY_LIGER_FN` of liger-kernel 0.8.5 has them."""
    seen: list[Any] = []
    with_liger(monkeypatch, **{named: lambda model: seen.append(model)})
    inner = loader.load_base(make(family, tmp_path / family), four_bit=False, device=torch.device("cpu"))
    accelerators.use_liger(inner)
    assert seen == [inner]
