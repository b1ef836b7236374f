"""A model loaded for training. Imports torch."""

from __future__ import annotations

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrate.core.files import write_whole
from orchestrate.local.model import PLAIN, SettingChoice

# Compute logits from hidden states. Imports torch.


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


BLOCK_ELEMENTS = 1 << 25
"""Number of logits in one block (128 MB in fp32)."""


@dataclass(frozen=True)
class OutputHead:
    """The output layer, and the scaling that the model's architecture applies to the logits."""

    layer: Any
    multiplier: float = 1.0
    softcap: float | None = None
    block_elements: int = BLOCK_ELEMENTS

    @classmethod
    def of(cls, model: Any) -> OutputHead:
        """Build the head from a model. Reads Gemma's soft cap, Granite's divisor and Cohere's factor from the
        model's configuration."""
        config = model.config.get_text_config()
        multiplier = float(getattr(config, "logit_scale", None) or 1.0)
        multiplier /= float(getattr(config, "logits_scaling", None) or 1.0)
        return cls(
            model.get_output_embeddings(), multiplier, getattr(config, "final_logit_softcapping", None)
        )

    @property
    def frozen(self) -> bool:
        bias = getattr(self.layer, "bias", None)
        return type(self.layer) is torch.nn.Linear and bias is None and not self.layer.weight.requires_grad

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute the logits in fp32: [n, hidden] -> [n, vocabulary]."""
        logits = self.layer(hidden).float()
        if self.multiplier != 1.0:
            logits = logits * self.multiplier
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    @property
    def block(self) -> int:
        return max(16, self.block_elements // int(self.layer.weight.shape[0]))


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


T = TypeVar("T")
BF16 = SettingChoice("bf16", "requested by name")


@dataclass
class TrainedOnly:
    """Limits the last layer's MLP to the trained positions, because the loss doesn't depend on other
    positions."""

    places: torch.Tensor | None = None


def decoder_of(inner: Any) -> Any:
    """Return the decoder of a transformers model: the language model without its output layer. `inner` may
    also have vision or audio parts."""
    found = inner.get_decoder()
    while found is inner or found.get_output_embeddings() is not None:
        deeper = getattr(found, "model", None)
        if deeper is None:
            return found
        found = deeper
    return found


@dataclass(frozen=True)
class Packed:
    """The positions of the rows in a packed model input."""

    starts: Tensor
    """Index of each row's first token in the flattened input, followed by the end of the last row, as [rows +
    1]."""
    longest: int

    @classmethod
    def of(cls, positions: npt.NDArray[np.int64], device: torch.device) -> Packed:
        """Build the layout from position ids, which restart at 0 in each row. Each padding token counts as a
        separate row."""
        flat = positions.reshape(-1)
        starts = np.append(np.flatnonzero(flat == 0), flat.size)
        longest = int(np.diff(starts).max())
        return cls(torch.from_numpy(starts.astype(np.int32)).to(device, non_blocking=True), longest)


@dataclass
class Loaded:
    """A model loaded for training. `model` is trained (a peft model unless all weights are trained), and
    `inner` is the transformers model inside it."""

    model: Any
    inner: Any
    head: OutputHead
    device: torch.device
    choice: SettingChoice = PLAIN
    precision: SettingChoice = BF16
    loss_scale: float = 1.0
    """Factor by which the loss is multiplied before the backward pass in fp16."""
    checkpointing: bool = False
    """True if the backward pass computes each layer again instead of keeping its activations."""
    line_limit: int = 0
    """Maximum length in tokens of rows that are packed into one sequence on a CPU. 0 if the model does not
    support this."""
    shares: bool = False
    """True if a prefix that several rows share may be computed only once. Dropout and noise rule this out."""
    trained_only: TrainedOnly | None = None
    packs: bool = False
    """True if packed rows don't attend to one another when position ids restart at 0 in each row."""
    packed_layout: bool = False
    """True if the attention uses the layout of packed rows instead of a mask (`packed_attention`)."""
    turned_on: list[str] = field(default_factory=list[str])
    """Names of the optimizations in use, as shown to the user."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """Optimizations that are not in use, each with the reason, as shown to the user."""
    without_adapter: tuple[str, ...] = ()
    """Messages for the user that list the modules and parameters without an adapter, and say why."""
    taken_out: Path | None = None
    """Folder of the adapter's initial weights. `None` unless they were subtracted from the base model."""
    balancing: float = 0.0
    """Weight of the load-balancing loss in a mixture of experts. If not 0, `hidden` stores the routers'
    outputs in `routed`."""
    routed: tuple[torch.Tensor, ...] | None = None
    """Router logits of each layer with experts, as [tokens, experts]."""
    root: Any = None
    """Module that gathers the weights if they are sharded over several processes, otherwise `None`."""
    own_logits: bool = False
    """True if the architecture computes its logits in a way that `OutputHead` doesn't reproduce. `hidden`
    then returns the model's own logits, and the head leaves them unchanged."""

    @property
    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The trainable parameters by name, in a fixed order."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    @property
    def parameters(self) -> int:
        """Number of parameters in the entire model. Every value in a packed 4-bit weight is counted."""
        packed = ((p, getattr(p, "quant_state", None)) for p in self.model.parameters())
        return sum(p.numel() if state is None else state.shape.numel() for p, state in packed)

    def layout_of(self, positions: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return the model inputs that packed rows need in addition to position ids."""
        return {"layout": Packed.of(positions, self.device)} if self.packed_layout else {}

    def computed(self, compute: Callable[[], T]) -> T:
        """Run `compute` and return its result. `compute` may use any of the model's weights, including the
        output layer's. Sharded weights are gathered as needed."""
        return compute() if self.root is None else self.root(compute)

    @contextmanager
    def evaluation_mode(self) -> Generator[None]:
        """Switch the model to evaluation mode within the context."""
        training = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(training)

    def hidden(self, ids: torch.Tensor, places: torch.Tensor | None = None, **inputs: Any) -> torch.Tensor:
        """Compute hidden states before the output layer: [rows, tokens] -> [rows, tokens, hidden]. With
        `places` (positions in the flattened input), only the states at these positions are correct."""
        if "layout" in inputs:
            # transformers passes a 4-D mask through unchanged. Our attention ignores it and uses the layout.
            inputs["attention_mask"] = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.device)
        if self.balancing:
            inputs["output_router_logits"] = True
        if self.own_logits:
            out = self.inner(input_ids=ids, use_cache=False, **inputs)
            self.routed = getattr(out, "router_logits", None)
            return out.logits
        if self.trained_only is not None:
            self.trained_only.places = places
        try:
            out = decoder_of(self.inner)(input_ids=ids, use_cache=False, **inputs)
            self.routed = getattr(out, "router_logits", None)
            return out.last_hidden_state
        finally:
            if self.trained_only is not None:
                self.trained_only.places = None


class OwnLogits(torch.nn.Module):
    """Replaces the output layer if `hidden` already returns logits."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits


# Detect out-of-memory errors, and prepare the retry of the failed pass. Imports torch.


# The type annotations of torch are incomplete.
# pyright: reportUnknownMemberType=false


R = TypeVar("R")

NO_KERNEL = "could not create a primitive"
"""Start of oneDNN's messages if it can't compile a kernel."""
_of_thread = threading.local()
"""`pool` is the pool that runs the passes of a thread in which oneDNN can no longer compile kernels."""


def run_pass(compute: Callable[[], R]) -> R:
    """Run a pass that may be retried after it ran out of memory. If oneDNN can't compile a kernel for it, the
    passes that follow run in a new thread. oneDNN's assembler (Xbyak) stores its first error per thread and
    never clears it, so the old thread can't compile any kernel again, however much memory is free."""
    pool: ThreadPoolExecutor | None = getattr(_of_thread, "pool", None)
    modes = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # each thread has its own

    def as_here() -> R:
        with torch.inference_mode(modes[0]), torch.set_grad_enabled(modes[1]):
            return compute()

    try:
        return compute() if pool is None else pool.submit(as_here).result()
    except RuntimeError as error:
        if NO_KERNEL in str(error):
            threads = torch.get_num_threads()
            _of_thread.pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,))
        raise


def out_of_memory(error: BaseException) -> bool:
    # On a CPU, torch has no separate exception class for this, and oneDNN uses other messages. Neither have
    # CUDA's own allocations.
    said = (
        "DefaultCPUAllocator", "bad_alloc", "could not create a memory", NO_KERNEL,
        "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "CUDA driver error: out of memory",
    )  # fmt: skip
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(s in str(error) for s in said)


def give_back(device: torch.device) -> None:
    """Free memory after a forward or backward pass ran out of memory. Call this only after the exception has
    been dropped, because its traceback references the tensors of the failed pass.

    Runs the garbage collector, because autograd's graph is a reference cycle. On a CPU, also returns unused
    heap memory to the operating system, because oneDNN doesn't allocate from the C library's heap. Without
    both steps, a retry would run out of memory too."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
        trim(0)


def halving(rows: int, device: torch.device, compute: Callable[[int], R]) -> tuple[R, int]:
    """Call `compute` with this number of rows, and halve the number each time memory runs out. Returns the
    result and the number of rows that fit. If even one row does not fit, the error propagates."""
    while True:
        try:
            return run_pass(partial(compute, rows)), rows
        except (RuntimeError, MemoryError) as error:
            if rows <= 1 or not out_of_memory(error):
                raise
        give_back(device)
        rows //= 2


# Choose the number of CPU threads that is fastest under the machine's current load.


_FILE = "threads"
"""File in a run's folder that stores the number of threads. A resumed run uses the same number, because it
affects rounding and therefore the results."""
_ROUNDS = 20
_WORTH = 0.9
"""A larger number of threads is used only if it reduces the time to less than this fraction."""


def of_run(folder: Path, asked: int | None, device: torch.device) -> int:
    """Choose the number of threads with `chosen`, and store it in the run's folder. A resumed run uses the
    stored number unless `asked` is set."""
    try:
        before = int((folder / _FILE).read_text(encoding="ascii"))
    except (OSError, ValueError):
        before = None
    found = chosen(asked or before, device)
    write_whole(folder / _FILE, str(found).encode())
    return found


def chosen(asked: int | None, device: torch.device) -> int:
    """Return the number of threads to use. This is `asked` or OMP_NUM_THREADS, if one of them is set.
    Otherwise, it is torch's default on a GPU, and the fastest number in a short benchmark on a CPU."""
    if asked is not None:
        return asked
    most = torch.get_num_threads()
    if os.environ.get("OMP_NUM_THREADS") or device.type != "cpu":
        return most
    return fastest(most, _seconds)


def fastest(most: int, seconds: Callable[[int], float]) -> int:
    """Return the fastest number of threads out of 1, 2, 4 ... `most`. A larger number is chosen only if it is
    clearly faster. `seconds` measures the time that a number of threads takes."""
    counts = sorted({most, *(1 << n for n in range(most.bit_length()) if 1 << n <= most)})
    best, took = counts[0], seconds(counts[0])
    for count in counts[1:]:
        if (now := seconds(count)) < _WORTH * took:
            best, took = count, now
    return best


def _seconds(count: int) -> float:
    """Measure matmuls of the size that small models have. Returns their sum rather than the minimum, because
    waiting for a core counts."""
    torch.set_num_threads(count)
    rows, weights = torch.ones(512, 512), torch.ones(512, 512)
    torch.mm(rows, weights)  # starts the threads
    begun = time.perf_counter()
    for _ in range(_ROUNDS):
        torch.nn.functional.silu(torch.mm(rows, weights))
    return time.perf_counter() - begun
