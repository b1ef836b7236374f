"""A training step at the sizes of 8B and 70B models without their memory: torch's fake tensors have shapes,
types and devices, and no numbers. The plan is compared with the most that such a step holds at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from bitsandbytes.functional import QuantState
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from orchestrate.local.encoding.encoded import EncodedRows
from orchestrate.local.job import AdapterSettings
from orchestrate.local.model.loaded import Loaded, OutputHead
from orchestrate.local.model.loader import in_32_bits, saves_tied
from orchestrate.local.model.shortcuts.selection import fuse
from orchestrate.local.objectives.base import Objective
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import Setup, plan

# torch, transformers and bitsandbytes describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

LAYERS = 3
"""Of 32 and 80: all are alike, and what a step holds grows by as much with each."""
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 8192,
}
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "intermediate_size": 28672, "num_attention_heads": 64}
QWEN3_8B = {
    **LLAMA_8B,
    "model_type": "qwen3",
    "head_dim": 128,
    "intermediate_size": 12288,
    "vocab_size": 151936,
}


class Held(TorchDispatchMode):
    """Bytes of the tensors that are made within it, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage())
        return out

    def know(self, model: torch.nn.Module) -> None:
        """What is there before does not count."""
        for tensor in [*model.parameters(), *model.buffers()]:
            storage = tensor.untyped_storage()
            self._known[storage._cdata] = weakref.ref(storage)

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is not None:
            return

        def gone(_: Any) -> None:
            self.now -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


@contextmanager
def shapes_alone(device: str) -> Iterator[None]:
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True), torch.device(device):
        yield


def packed(out: int, into: int) -> torch.nn.Parameter:
    """As bitsandbytes holds a matrix on a GPU, with double quantisation."""
    blocks = out * into // 64
    scales = QuantState(torch.empty(-(-blocks // 256)), code=torch.empty(256), blocksize=256)
    scales.dtype = torch.float32
    found: Any = torch.nn.Parameter(torch.empty(out * into // 2, 1, dtype=torch.uint8), False)
    found.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=torch.Size((out, into)),
        code=torch.empty(16),
        blocksize=64,
        quant_type="nf4",
        dtype=torch.bfloat16,
        offset=torch.empty(()),
        state2=scales,
    )
    return found


def made(config: dict[str, Any], setup: Setup, device: str) -> Loaded:
    """Made without numbers first: fake tensors don't bear what libraries do to a model while they make it."""
    full = setup.adapter == "full"
    with unset_fake_temporarily(), torch.device("meta"):
        kind: Any = AutoConfig
        inner: Any = AutoModelForCausalLM.from_config(
            kind.for_model(**{"model_type": "llama", **config}),
            dtype=torch.float32 if full else torch.bfloat16,
        )
        model = inner
        if setup.adapter == "qlora":
            for name, module in list(inner.named_modules()):
                if type(module) is torch.nn.Linear and name != "lm_head":
                    four: Any = bnb.nn.Linear4bit
                    size = (module.in_features, module.out_features)
                    inner.set_submodule(name, four(*size, False, torch.bfloat16, quant_type="nf4"))
            inner.is_loaded_in_4bit = True
        if not full:
            for parameter in inner.parameters():
                parameter.requires_grad_(False)
            lora = LoraConfig(r=setup.rank, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(inner, lora)
            in_32_bits(model)
    for module in list(model.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.nn.Parameter(
                torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad
            )
            if type(module) is bnb.nn.Linear4bit:
                fake = packed(module.out_features, module.in_features)
            module.register_parameter(name, fake)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module.register_buffer(name, torch.empty(buffer.shape, dtype=buffer.dtype), persistent=False)
    if not full:
        assert fuse(model) == 7 * LAYERS
    if setup.gradient_checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return Loaded(model, inner, OutputHead.of(inner), torch.device(device))


def rows_of(setup: Setup, vocabulary: int) -> EncodedRows:
    count, length = setup.rows, setup.longest
    weights = np.ones(count * length, dtype=np.float32)
    ids = np.random.default_rng(0).integers(3, vocabulary, count * length).astype(np.int32)
    return EncodedRows(ids, weights, np.arange(count + 1, dtype=np.int64) * length)


def held_by_a_step(config: dict[str, Any], setup: Setup) -> int:
    """Beside weights, adapter and gradients. Autograd without a GPU takes no tensor of one: those here say
    that they are of a CPU, whose kernel for attention keeps what flash attention does."""
    with shapes_alone("cpu"):
        loaded = made(config, setup, "cpu")
        objective, rows = Objective(loaded, 0), rows_of(setup, config["vocab_size"])
        examples = list(range(rows.examples))
        total = objective.weight_of(rows, examples)
        objective.run(rows, examples, total, backward=True)  # the gradients are there afterwards
        held = Held()
        held.know(loaded.model)
        with held:
            objective.run(rows, examples, total, backward=True)
        return held.most


@pytest.mark.parametrize(
    ("config", "setup"),
    [
        (LLAMA_8B, Setup(longest=2048)),
        (LLAMA_8B, Setup(longest=8192, gradient_checkpointing=True)),
        (LLAMA_8B, Setup(adapter="lora", rows=4, longest=1024)),
        (QWEN3_8B, Setup(longest=4096)),
        (LLAMA_70B, Setup(longest=4096, gradient_checkpointing=True)),
    ],
)
def test_the_plan_is_within_a_tenth_of_what_a_step_holds(config: dict[str, Any], setup: Setup) -> None:
    held = held_by_a_step(config, setup)
    parts = plan(ModelShape.of(config), setup, device="cuda", available_bytes=1).parts
    planned = parts["activations"] + parts["logits"]
    rest = sum(parts[name] for name in ("weights", "adapter", "gradients", "optimizer"))
    assert planned + rest == pytest.approx(held + rest, rel=0.1), (planned / 1e9, held / 1e9)
    assert planned == pytest.approx(held, rel=0.25), (planned / 1e9, held / 1e9)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a CPU build of torch moves nothing to a GPU")
@pytest.mark.parametrize("adapter", ["qlora", "lora"])
def test_the_whole_forward_pass_stays_on_the_gpu(adapter: Any) -> None:
    """A tensor of the CPU among those of the GPU is an error with fake tensors as it is with real ones. The
    loss makes its gradient in the same pass."""
    setup = Setup(adapter=adapter, rows=2, longest=512)
    with shapes_alone("cuda"):
        loaded = made(LLAMA_8B, setup, "cuda")
        objective, rows = Objective(loaded, 0), rows_of(setup, LLAMA_8B["vocab_size"])
        batch = objective.collate(rows, [0, 1])
        assert {t.device.type for t in (batch.ids, batch.places, batch.targets, batch.weights)} == {"cuda"}
        loss, correct, _ = objective.loss(rows, [0, 1], batch)
        assert {loss.device.type, correct.device.type} == {"cuda"} and loss.requires_grad
        assert objective.run(rows, [0, 1], 1.0, backward=False).tokens == 2 * 512


def test_a_tensor_on_the_wrong_device_would_be_seen() -> None:
    setup = replace(Setup(adapter="lora"), longest=64)
    with shapes_alone("cuda"):
        loaded = made(LLAMA_8B, setup, "cpu")  # batches go to the CPU
        objective, rows = Objective(loaded, 0), rows_of(setup, LLAMA_8B["vocab_size"])
        with pytest.raises(Exception, match="device"):
            objective.run(rows, [0], 1.0, backward=False)


ADAPTED: tuple[tuple[Any, tuple[str, ...] | None, str | None], ...] = (
    (None, None, None),
    ("all-linear", None, None),
    (("q_proj", "lm_head"), None, None),
    (("q_proj", "lm_head"), None, "lm_head"),
    (".*lm_head", None, None),
    (".*(q_proj|_head)", None, None),
    (r"^(?!.*lm_head).*proj$", None, None),
    (("q_proj",), ("lm_head",), None),
    (("q_proj",), ("head",), None),
    (("q_proj",), ("embed_tokens",), None),
    (("q_proj",), ("norm",), None),
)
"""Targets, modules that are saved whole, and modules left out."""


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("targets", "saved", "excluded"), ADAPTED)
def test_the_plan_knows_which_output_layers_peft_trains(
    tied: bool, targets: Any, saved: tuple[str, ...] | None, excluded: str | None
) -> None:
    """A frozen one takes a few bytes a logit, as its logits become their own slopes; another takes 12."""
    adapter = AdapterSettings(type="lora", targets=targets, modules_to_save=saved, exclude_modules=excluded)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
    }
    config = LlamaConfig(vocab_size=64, tie_word_embeddings=tied, **sizes)
    model = LlamaForCausalLM(config)
    lora = LoraConfig(
        target_modules=adapter.modules,
        modules_to_save=list(saved) if saved else None,
        exclude_modules=excluded,
        ensure_weight_tying=saves_tied(model, adapter),
    )
    get_peft_model(model, lora)
    frozen = OutputHead.of(model).frozen
    shape = ModelShape.of({**sizes, "vocab_size": 1 << 18, "tie_word_embeddings": tied})
    setup = Setup(adapter="lora", targets=targets, lora=adapter, longest=64)
    logits = plan(shape, setup, device="cpu", available_bytes=64 << 30).parts["logits"]
    assert (logits < 12 * 64 * shape.vocabulary) == frozen
