"""Which engine is chosen, and that each gives the loss of the plain one."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from sessions import TINY, make_session

from orchestrate.errors import UsageError
from orchestrate.local import engines
from orchestrate.local.engines import COMPILE_TOKENS, EngineMissing, choose
from orchestrate.providers.local.translation import translate
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Setting

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def pretend(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """A package of this name is installed."""
    there = ModuleType(module)
    there.__spec__ = importlib.machinery.ModuleSpec(module, None)
    monkeypatch.setitem(sys.modules, module, there)


def test_auto_takes_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(None, "cpu", 10**9).engine == choose("auto", "cpu").engine == "fused"
    assert choose("auto", "cuda", COMPILE_TOKENS).engine == "compile"
    few = choose("auto", "cuda", COMPILE_TOKENS - 1)
    assert few.engine == "fused" and "pip install liger-kernel" in few.reason
    pretend(monkeypatch, "liger_kernel")
    assert choose("auto", "cuda", COMPILE_TOKENS).engine == choose("liger", "cuda").engine == "liger"
    assert choose("auto", "cpu").engine == "fused"


@pytest.mark.parametrize(("engine", "package"), [("liger", "liger-kernel"), ("unsloth", "unsloth")])
def test_an_engine_asked_for_and_absent_is_refused_with_the_way_to_it(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineMissing) as absent:
        choose(engine, "cuda")
    assert absent.value.fix == f"pip install {package}"
    pretend(monkeypatch, engines.PACKAGES[engine][0])
    assert choose(engine, "cuda").engine == engine
    with pytest.raises(EngineMissing, match="needs an NVIDIA GPU"):
        choose(engine, "cpu")


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="no engine 'warp'") as error:
        choose("warp", "cpu")
    assert "liger" in str(error.value.fix)


def setting(**options: object) -> Setting:
    spec = JobSpec.parse(
        {"model": str(TINY), "train": "t.jsonl", "provider_options": {"local": {"device": "cpu", **options}}}
    )
    translation = translate(spec, {})
    (found,) = (s for s in translation.settings if s.name == "provider_options.engine")
    return found


def test_the_plan_says_which_engine_and_why() -> None:
    unasked = setting()
    assert unasked.outcome is Outcome.DEFAULTED and str(unasked.rule).startswith("fused: on a CPU")
    assert setting(engine="plain").outcome is Outcome.KEPT
    for engine in ("liger", "warp"):
        assert setting(engine=engine).outcome is Outcome.REFUSED


def test_a_plan_for_a_gpu_elsewhere_tells_that_gpus_engine() -> None:
    spec = JobSpec.parse({"model": str(TINY), "train": "t.jsonl"})
    (found,) = (s for s in translate(spec, {"gpu_memory_gib": 24}).settings if "engine" in s.name)
    assert "Liger" in str(found.rule) and "on a CPU" not in str(found.rule)


def test_compiling_is_for_a_gpu() -> None:
    assert choose("compile", "cuda").engine == "compile"
    with pytest.raises(EngineMissing, match="for a GPU"):
        choose("compile", "cpu")


def test_our_own_engine_has_the_losses_of_the_plain_one(tmp_path: Path) -> None:
    train = tmp_path / "t.jsonl"
    with train.open("w", encoding="utf-8") as out:
        for i in range(24):
            talk = [
                {"role": "user", "content": f"Is {i} even?" + " Think." * (i % 5)},
                {"role": "assistant", "content": "yes" if i % 2 == 0 else "no"},
            ]
            out.write(json.dumps({"messages": talk}) + "\n")
    losses: list[list[float]] = []
    for name in ("plain", "fused"):
        session = make_session(tmp_path, train, method={"type": "sft"}, ref=name, engine=name)
        assert session.loaded.choice.engine == name
        session.loop.run()
        losses.append([p.values["train_loss"] for p in session.run.metrics()])
        (event,) = (e for e in session.run.events() if e.type == "engine")
        assert event.message == f"engine {name}: asked for by name"
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
