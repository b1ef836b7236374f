"""Each optimizer by name against the library's own, in a plain loop, and its state through a file."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.local.families import make

from orchestrate.local.job import Hyper
from orchestrate.local.plan import memory
from orchestrate.local.run.optimizers import (
    evaluation_parameters,
    group_metrics,
    make_optimizer,
    restore_state,
    set_rate,
    state_tensors,
)
from orchestrate.spec.methods import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")

RATES = (1e-3, 3e-3, 2e-3)
Params = dict[str, torch.nn.Parameter]


def parameters() -> Params:
    """A matrix of so many numbers that its moments are held in 8 bits, embeddings, and a vector."""
    chance = torch.Generator().manual_seed(3)
    shapes = {"layer.weight": (64, 96), "embed_tokens.weight": (80, 64), "norm.weight": (64,)}
    return {name: torch.nn.Parameter(torch.randn(shape, generator=chance)) for name, shape in shapes.items()}


def learn(params: Params, step: int) -> None:
    chance = torch.Generator().manual_seed(100 + step)
    for parameter in params.values():
        parameter.grad = torch.randn(parameter.shape, generator=chance)


def train(params: Params, optimizer: Any, steps: range) -> None:
    for step in steps:
        learn(params, step)
        set_rate(optimizer, RATES[step % 3])
        optimizer.step()
        optimizer.zero_grad()


def reference(kind: str, params: Params) -> list[Any]:
    """The library's own, as its documentation has it be made."""
    import schedulefree
    from transformers.optimization import Adafactor

    bnb: Any = import_module("bitsandbytes.optim")
    # A norm is not shrunk.
    matrix, embeddings, vector = params.values()
    values: list[Any] = [{"params": [matrix, embeddings]}, {"params": [vector], "weight_decay": 0.0}]
    others: list[Any] = [{"params": [embeddings]}, {"params": [vector], "weight_decay": 0.0}]
    moments: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    decay: dict[str, Any] = {"weight_decay": 0.1}
    make: dict[str, Callable[[], list[Any]]] = {
        "adamw": lambda: [torch.optim.AdamW(values, **moments)],
        "adamw_8bit": lambda: [bnb.AdamW8bit(values, **moments)],
        "paged_adamw": lambda: [bnb.PagedAdamW32bit(values, **moments)],
        "paged_adamw_8bit": lambda: [bnb.PagedAdamW8bit(values, **moments)],
        "lion": lambda: [bnb.Lion(values, betas=(0.8, 0.95), **decay)],
        "lion_8bit": lambda: [bnb.Lion8bit(values, betas=(0.8, 0.95), **decay)],
        "paged_lion": lambda: [bnb.PagedLion(values, betas=(0.8, 0.95), **decay)],
        "paged_lion_8bit": lambda: [bnb.PagedLion8bit(values, betas=(0.8, 0.95), **decay)],
        "adafactor": lambda: [
            Adafactor(values, lr=1e-3, scale_parameter=False, relative_step=False, **decay)
        ],
        "muon": lambda: [
            torch.optim.Muon([matrix], momentum=0.8, adjust_lr_fn="match_rms_adamw", **decay),
            torch.optim.AdamW(others, **moments),
        ],
        "schedule_free_adamw": lambda: [schedulefree.AdamWScheduleFree(values, **moments)],
    }
    return make[kind]()


def ours(kind: str, params: Params) -> Any:
    given: dict[str, Any] = {"betas": (0.8, 0.95), "eps": 1e-6, "momentum": 0.8}
    own = {name: given[name] for name in OPTIMIZERS[kind]}
    return make_optimizer(params, Hyper(optimizer=kind, weight_decay=0.1, learning_rate=1e-3, **own))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_the_library_s_own(kind: str) -> None:
    mine, theirs = parameters(), parameters()
    train(mine, ours(kind, mine), range(4))
    parts = reference(kind, theirs)
    if kind == "schedule_free_adamw":
        parts[0].train()
    for step in range(4):
        learn(theirs, step)
        for part in parts:
            for group in part.param_groups:
                group["lr"] = RATES[step % 3]
            part.step()
    for name, parameter in mine.items():
        assert not torch.equal(parameter, parameters()[name]), name
        assert torch.allclose(parameter, theirs[name], rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_goes_on_from_a_file_to_the_bit(kind: str, tmp_path: Path) -> None:
    whole, half, again = parameters(), parameters(), parameters()
    train(whole, ours(kind, whole), range(6))
    first = ours(kind, half)
    train(half, first, range(3))
    kept = {k: v.contiguous() for k, v in state_tensors(first, half).items()}
    save_file(kept, tmp_path / "state.safetensors")
    with torch.no_grad():
        for name, parameter in again.items():
            parameter.copy_(half[name])
    second = ours(kind, again)
    restore_state(second, again, load_file(tmp_path / "state.safetensors"))
    train(again, second, range(3, 6))
    for name, parameter in again.items():
        assert torch.equal(parameter, whole[name]), name


@pytest.mark.parametrize("kind", ["paged_adamw", "paged_adamw_8bit", "paged_lion"])
def test_what_was_in_pages_is_in_pages_again(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a run that fits only by its pages runs out of memory when it goes on. Pages need a GPU: here
    the library itself must be asked for the place of each moment."""
    half, again = parameters(), parameters()
    first, second = ours(kind, half), ours(kind, again)
    train(half, first, range(2))
    places: dict[int, torch.Tensor] = {}
    make = second.get_state_buffer

    def asked(parameter: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        made: torch.Tensor = make(parameter, dtype=dtype)
        places[id(made)] = made
        return made

    monkeypatch.setattr(second, "get_state_buffer", asked)
    restore_state(second, again, state_tensors(first, half))
    moments = [
        s for state in second.state.values() for key, s in state.items() if key in ("state1", "state2")
    ]
    assert len(moments) == (3 if "lion" in kind else 6)
    assert {id(moment) for moment in moments} == set(places)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_plan_counts_its_state(kind: str) -> None:
    params = {"lora_A.weight": torch.nn.Parameter(torch.randn(16, 4096))}
    optimizer = ours(kind, params)
    train(params, optimizer, range(1))
    # Maps of 256 numbers, which bitsandbytes shares between all parameters, and numbers do not grow.
    held = sum(t.nbytes for k, t in state_tensors(optimizer, params).items() if "qmap" not in k)
    assert held == pytest.approx(memory.state_bytes(kind, 16) * 16 * 4096, rel=0.01)


def test_what_is_given_out_is_the_average_and_training_goes_on_to_the_bit() -> None:
    """As its authors evaluate: after `eval()`."""
    import schedulefree

    mine, straight, theirs = parameters(), parameters(), parameters()
    optimizer = ours("schedule_free_adamw", mine)
    train(straight, ours("schedule_free_adamw", straight), range(5))
    train(mine, optimizer, range(3))
    with evaluation_parameters(optimizer, mine):
        shown = {name: parameter.detach().clone() for name, parameter in mine.items()}
    train(mine, optimizer, range(3, 5))
    for name, parameter in mine.items():
        assert torch.equal(parameter, straight[name]), name
    *matrices, vector = theirs.values()
    groups = [{"params": matrices}, {"params": [vector], "weight_decay": 0.0}]
    reference = schedulefree.AdamWScheduleFree(groups, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    reference.train()
    for step in range(3):
        learn(theirs, step)
        for group in reference.param_groups:
            group["lr"] = RATES[step]
        reference.step()
    trained = {name: parameter.detach().clone() for name, parameter in theirs.items()}
    reference.eval()
    for name, value in shown.items():
        assert torch.allclose(value, theirs[name], rtol=1e-6, atol=1e-7)
        assert not torch.allclose(value, trained[name], rtol=1e-4)


def test_groups_that_learn_otherwise_are_measured_apart() -> None:
    """Against norms by torch's own hand."""
    names = ("x.lora_A.weight", "x.lora_B.weight", "y.lora_B.weight", "x.lora_embedding_A")
    params = {name: torch.nn.Parameter(torch.zeros(4, 4)) for name in names}
    hyper = Hyper(learning_rate=1e-3)
    optimizer = make_optimizer(params, hyper, 16.0)
    learn(params, 0)
    found = group_metrics(optimizer, 5e-4)

    def norm(*of: str) -> float:
        return torch.cat([params[name].grad.flatten() for name in of]).norm().item()  # type: ignore[union-attr]

    assert found == pytest.approx(
        {
            "learning_rate_lora_A": 5e-4,
            "learning_rate_lora_B": 8e-3,
            "learning_rate_embeddings": 5e-7,
            "grad_norm_lora_A": norm(names[0]),
            "grad_norm_lora_B": norm(*names[1:3]),
            "grad_norm_embeddings": norm(names[3]),
        }
    )
    assert group_metrics(make_optimizer(params, hyper), 5e-4) == {}
    muon = {"w": params[names[0]], "norm": torch.nn.Parameter(torch.zeros(4))}
    learn(muon, 0)
    apart = group_metrics(make_optimizer(muon, Hyper(optimizer="muon")), 1.0)
    assert set(apart) == {
        f"{what}_{of}" for what in ("learning_rate", "grad_norm") for of in ("muon", "adamw")
    }


def test_loraplus_is_pefts() -> None:
    """Its groups, rates and steps, with adapters on linear layers and on embeddings, and DoRA's vectors."""
    from peft import LoraConfig, get_peft_model
    from peft.optimizers import create_loraplus_optimizer

    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed_tokens = torch.nn.Embedding(20, 8)
            self.up = torch.nn.Linear(8, 12)
            self.down = torch.nn.Linear(12, 8)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.down(self.up(self.embed_tokens(ids)))

    def model() -> Any:
        torch.manual_seed(5)
        names = ["embed_tokens", "up", "down"]
        config = LoraConfig(r=4, target_modules=names[:2], modules_to_save=["down"], use_dora=True)
        return get_peft_model(Small(), config)

    mine, theirs = model(), model()
    trainable = {n: p for n, p in mine.named_parameters() if p.requires_grad}
    optimizer = make_optimizer(trainable, Hyper(learning_rate=1e-2), 16.0)
    reference = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-2, loraplus_lr_ratio=16.0)
    for step in range(3):
        for one in (mine, theirs):
            one(torch.arange(10) + step).pow(2).sum().backward()
        set_rate(optimizer, 1e-2)
        for one in (optimizer, reference):
            one.step()
            one.zero_grad()
    before = dict(model().named_parameters())
    wanted = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    assert set(wanted) == set(trainable)
    for name, parameter in wanted.items():
        assert torch.allclose(trainable[name], parameter, rtol=1e-5, atol=1e-8), name
        assert not torch.equal(parameter, before[name]), name


def test_a_package_that_is_missing_is_named_with_the_line_that_installs_it() -> None:
    with pytest.raises(memory.OptimizerMissing, match="needs the package schedulefree") as error:
        memory.require("schedule_free_adamw", find=lambda name: None)
    assert error.value.fix == "pip install schedulefree"
    for kind in OPTIMIZERS.keys() - {"schedule_free_adamw"}:
        memory.require(kind, find=lambda name: None)


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
@pytest.mark.parametrize("family", ["qwen2", "olmo2", "gemma3_text", "starcoder2"])
def test_what_decays_is_what_transformers_lets_decay(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.trainer_pt_utils import get_parameter_names

    loaded: Any = AutoModelForCausalLM.from_pretrained(make(family, tmp_path))
    params = dict(loaded.named_parameters())
    optimizer = make_optimizer(params, Hyper(weight_decay=0.1))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    patterns = [r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)"]
    wanted = set(get_parameter_names(loaded, [torch.nn.LayerNorm], patterns))
    assert {name for name, p in params.items() if id(p) in decayed} == wanted & params.keys()
    assert 0 < len(decayed) < len(params)
