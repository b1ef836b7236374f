"""Which engine is chosen, and that each gives the loss of the plain one."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
import torch
from tests.unit.local.sessions import TINY, make_session

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import machine, model
from orchestrate.local.job import LocalJob
from orchestrate.local.model import COMPILE_TOKENS, EngineMissing, choose
from orchestrate.local.model.shortcuts.accelerators import load_unsloth
from orchestrate.local.run import now
from orchestrate.providers.local.translation import translate
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Setting, Translation

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
    assert choose(None, "cpu", 10**9).name == choose("auto", "cpu").name == "fused"
    assert choose("auto", "cuda", COMPILE_TOKENS).name == "compile"
    few = choose("auto", "cuda", COMPILE_TOKENS - 1)
    assert few.name == "fused" and "pip install 'orchestrate-ft[liger]'" in few.reason
    pretend(monkeypatch, "liger_kernel")
    assert choose("auto", "cuda", COMPILE_TOKENS).name == choose("liger", "cuda").name == "liger"
    assert choose("auto", "cpu").name == "fused"


@pytest.mark.parametrize(
    ("engine", "package"), [("liger", "'orchestrate-ft[liger]'"), ("unsloth", "unsloth")]
)
def test_an_engine_asked_for_and_absent_is_refused_with_the_way_to_it(
    engine: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineMissing) as absent:
        choose(engine, "cuda")
    assert absent.value.fix == f"pip install {package}"
    pretend(monkeypatch, model.PACKAGES[engine][0])
    assert choose(engine, "cuda").name == engine
    with pytest.raises(EngineMissing, match="needs an NVIDIA GPU"):
        choose(engine, "cpu")


@pytest.mark.parametrize(
    ("what", "job"),
    [
        ("adapter.dora", {"adapter": {"type": "lora", "dora": True}}),
        ("adapter.rank_pattern", {"adapter": {"type": "qlora", "rank_pattern": {"q_proj": 4}}}),
        ("packing", {"hyper": {"packing": True}}),
        ("added_tokens", {"added_tokens": ["<|note|>"]}),
    ],
)
def test_unsloth_is_not_given_what_it_would_not_do(what: str, job: dict[str, Any]) -> None:
    values = {
        "ref": "r",
        "model": str(TINY),
        "model_name": "tiny",
        "train": "t.jsonl",
        "method": {"type": "sft"},
    }
    made = {"adapter": {"type": "lora"}, "created_at": now(), **values}
    asked = LocalJob.from_dict({**made, **job})
    with pytest.raises(RunFailed, match=what):
        load_unsloth(asked, str(TINY), None, torch.bfloat16)


def test_an_unknown_engine_is_named_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="unknown engine 'warp'") as error:
        choose("warp", "cpu")
    assert "liger" in str(error.value.fix)


def translated(adapter: str = "qlora", **options: object) -> Translation:
    given = {"device": "cpu", **options}
    return translate(
        JobSpec.parse(
            {
                "model": str(TINY),
                "train": "t.jsonl",
                "adapter": adapter,
                "provider_options": {"local": given},
            }
        ),
        {},
    )


def setting(name: str = "engine", adapter: str = "qlora", **options: object) -> Setting:
    translation = translated(adapter, **options)
    (found,) = (s for s in translation.settings if s.name == f"provider_options.{name}")
    return found


def test_the_plan_says_which_engine_and_why() -> None:
    unasked = setting()
    assert unasked.outcome is Outcome.DEFAULTED and str(unasked.rule).startswith(
        "fused: this engine has CPU kernels"
    )
    assert setting(engine="plain").outcome is Outcome.KEPT
    for engine in ("liger", "warp"):
        assert setting(engine=engine).outcome is Outcome.REFUSED


def test_a_plan_for_a_gpu_elsewhere_tells_that_gpus_engine() -> None:
    spec = JobSpec.parse({"model": str(TINY), "train": "t.jsonl"})
    (found,) = (s for s in translate(spec, {"gpu_memory_gib": 24}).settings if "engine" in s.name)
    assert "Liger" in str(found.rule) and "on a CPU" not in str(found.rule)


def test_compiling_is_for_a_gpu() -> None:
    assert choose("compile", "cuda").name == "compile"
    with pytest.raises(EngineMissing, match="requires a GPU"):
        choose("compile", "cpu")


@pytest.mark.slow
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
        assert session.loaded.choice.name == name
        session.loop.progress = msgspec.structs.replace(session.loop.progress, window=1)  # the same steps
        session.loop.run()
        losses.append([p.values["train_loss"] for p in session.run.metrics()])
        (event,) = (e for e in session.run.events() if e.type == "engine")
        told, _, used = event.message.partition("; in use: ")
        assert told == f"engine {name}: set in the spec"
        assert bool(used) == bool(event.data["in_use"]) == (name == "fused")
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="elsewhere the CPU's instructions are not told"
)
def test_a_cpu_made_for_bf16_is_known_as_torch_knows_it() -> None:
    import torch

    here = torch.cpu.get_capabilities()
    assert machine.cpu_multiplies_bf16() == any(
        here.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16")
    )


def test_products_have_what_the_machine_is_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_multiplies_bf16", lambda: False)
    unasked = setting("precision")
    assert (unasked.outcome, unasked.sent) == (Outcome.DEFAULTED, "fp32")
    assert "does not support bf16" in str(unasked.rule)
    assert setting("precision", precision="bf16").sent == "bf16"
    assert model.precision(None, "cuda").name == "bf16"
    monkeypatch.setattr(machine, "cpu_multiplies_bf16", lambda: True)
    assert setting("precision").sent == "bf16"
    assert translated(precision="fp32").body["precision"] == "fp32"
    # The weights that are trained are in 32 bits, and so are their products on a CPU.
    assert setting("precision", adapter="full").sent == "fp32"
    for adapter, asked in (("full", "bf16"), ("full", "fp16"), ("qlora", "fp8")):
        assert setting("precision", adapter=adapter, precision=asked).outcome is Outcome.REFUSED


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ([["7.5"]], "fp16"),
        ([["7.0"]], "fp16"),
        ([["6.0"]], "fp16"),
        ([["6.1"]], "fp32"),
        ([["8.0"]], "bf16"),
        ([], "bf16"),
        ([["[N/A]"]], "bf16"),
    ],
)
def test_a_gpu_without_bf16_multiplies_in_what_it_has(
    told: list[list[str]], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its compute capability, which old drivers do not tell."""
    lines = [f"0, GPU-aaaa, {cell}" for (cell,) in told]
    monkeypatch.setattr(machine, "_ask", lambda *asked: lines if asked[0].endswith(",compute_cap") else [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine.capability.cache_clear()
    try:
        found = model.precision(None, "cuda")
    finally:
        machine.capability.cache_clear()
    assert found.name == name
    assert ("does not support bf16" in found.reason) is (name != "bf16")
    assert name == "bf16" or told[0][0] in found.reason


@pytest.mark.slow
def test_a_precision_that_nobody_asked_for_is_told_with_its_reason(tmp_path: Path) -> None:
    train = tmp_path / "t.jsonl"
    talk = [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]
    train.write_text((json.dumps({"messages": talk}) + "\n") * 8, encoding="utf-8")
    usual = model.precision(None, "cpu")
    other = {"bf16": "fp32", "fp32": "bf16"}[usual.name]
    for name, asked, reason in (
        (usual.name, False, usual.reason),
        (other, False, "chosen when the job was submitted"),
        (other, True, "set in the spec"),
    ):
        options = {"local": {"precision": name}} if asked else {}
        spec = {"model": str(TINY), "train": "t.jsonl", "provider_options": options}
        session = make_session(
            tmp_path, train, method={"type": "sft"}, ref=f"{name}-{asked}", precision=name, spec=spec
        )
        assert session.loaded.precision == model.SettingChoice(name, reason)


def test_32_bits_need_more_memory_than_16() -> None:
    plans = [translated(precision=p).memory for p in ("bf16", "fp32")]
    assert plans[0] is not None and plans[1] is not None
    for part in ("weights", "activations"):
        assert plans[0].parts[part] < plans[1].parts[part]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["qlora", "lora"])
def test_a_run_has_the_products_that_it_was_given(tmp_path: Path, adapter: str) -> None:
    import torch

    train = tmp_path / "t.jsonl"
    talk = [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]
    train.write_text((json.dumps({"messages": talk}) + "\n") * 8, encoding="utf-8")
    losses: list[list[float]] = []
    kinds = (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32))
    for name, dtype in kinds:
        session = make_session(
            tmp_path, train, method={"type": "sft"}, ref=name, precision=name, adapter={"type": adapter}
        )
        assert session.loaded.inner.dtype == dtype
        if name == "fp16":  # at the scale with which it begins, the first step overflows and changes nothing
            session.loop.progress = msgspec.structs.replace(session.loop.progress, loss_scale=2.0**8)
        session.loop.run()
        losses.append([p.values["train_loss"] for p in session.run.metrics()])
        (event,) = (e for e in session.run.events() if e.type == "precision")
        assert event.message == f"precision {name}: set in the spec"
        assert all(("loss_scale" in p.values) is (name == "fp16") for p in session.run.metrics())
    assert losses[2] == pytest.approx(losses[0], rel=2e-2)
    assert losses[2] == pytest.approx(losses[1], rel=1e-2)
