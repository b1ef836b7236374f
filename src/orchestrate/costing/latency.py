"""Estimate a model's response latency before training it. Based on the model's size, for one request at a
time.

To generate a token, a GPU reads every active weight from memory once, so memory bandwidth limits generation.
The prompt is processed in parallel, with two operations per weight and token, so compute limits its speed.
GPUs achieve only a fraction of the speed in their data sheets. These fractions are fitted to published
measurements and validated against other measurements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from orchestrate.catalog import Model
from orchestrate.costing import hardware
from orchestrate.costing.ways import BYTES_PER_PARAM, gpus_for
from orchestrate.types import Record

BANDWIDTH_SHARE = (0.70, 0.57)
"""Achieved fraction of the data sheet's memory bandwidth, as (on one GPU, on several GPUs that split the
model). Fitted to LMDeploy 0.1.0a1 on A100 80GB with 16-bit weights and one request at a time: Llama-2-7B
generates 102 tokens per second on one GPU, and Llama-2-70B generates 34 on four (InternLM/lmdeploy,
docs/en/benchmark/a100_fp16.md, 2023-12). Newer engines are at least as fast."""
COMPUTE_SHARE = (0.68, 0.58)
"""Achieved fraction of the data sheet's compute, as (on one GPU, on several GPUs). According to the page
cited above, the first token after a prompt of 2,048 tokens takes 139 ms on one GPU and 402 ms on four."""
SOURCE = "bandwidth and compute from the data sheet, times the efficiency of LMDeploy on A100 (2023-12)"
BAND = 1.4
"""Factor by which the true latency may be higher or lower than predicted. All predictions are within this
factor of the following measurements, which were not used for the fit: Llama-2-13B on one A100 (the same
page), Llama-3.1 8B on one A100, and Llama-3.3 70B with 8-bit weights on two H100s (NVIDIA's NIM)."""
DEVICES = ("L4", "L40S", "A100 80GB", "H100")
"""GPUs for which latencies are predicted by default."""
LARGER = "llama-3.3-70b"
"""Default larger model to compare a small tuned model with."""


class Device(Record, frozen=True, kw_only=True):
    """Memory bandwidth and compute that a device achieves, summed over its GPUs."""

    name: str
    gpus: int = 1
    bytes_per_s: float
    flops: float
    token_overhead_s: float = 0.0
    """Extra time per generated token in seconds, independent of the model's weights."""
    prompt_overhead_s: float = 0.0
    """Extra time for processing the prompt in seconds, in addition to the first token's overhead."""


class Latency(Record, frozen=True, kw_only=True):
    """Predicted latency of one model on one machine that answers one request at a time."""

    model: str
    params_b: float
    device: str
    gpus: int
    input_tokens: int
    output_tokens: int
    first_token_ms: float
    token_ms: float
    """Milliseconds for each token after the first."""
    band: float = BAND
    """Factor by which the true latency may be higher or lower than predicted."""

    @property
    def answer_ms(self) -> float:
        return self.first_token_ms + max(self.output_tokens - 1, 0) * self.token_ms

    def within(self, limit_ms: float) -> bool | None:
        """Return whether the complete answer arrives within the limit, or `None` if the prediction is too
        uncertain to decide."""
        if self.answer_ms * self.band <= limit_ms:
            return True
        return False if self.answer_ms / self.band > limit_ms else None


def predict(
    device: Device, model: str, params_b: float, width: float, tokens: tuple[int, int], band: float = BAND
) -> Latency:
    """Predict the latency of an answer.

    `params_b` is the number of active parameters in billions, `width` the number of bytes per parameter, and
    `tokens` the number of input and output tokens.
    """
    weights = params_b * 1e9
    token_s = weights * width / device.bytes_per_s + device.token_overhead_s
    first_s = 2 * weights * tokens[0] / device.flops + device.prompt_overhead_s + token_s
    return Latency(
        model=model,
        params_b=params_b,
        device=device.name,
        gpus=device.gpus,
        input_tokens=tokens[0],
        output_tokens=tokens[1],
        first_token_ms=1000 * first_s,
        token_ms=1000 * token_s,
        band=band,
    )


def gpu(name: str, count: int, width: float = 2.0) -> Device | None:
    """Return a device with `count` GPUs of one type, assuming the efficiency measured on A100s. `width` is
    the number of bytes per parameter. Returns `None` if the table does not list the GPU."""
    known = hardware.table()
    found = hardware.closest(name, known.tflops)
    if found is None:
        return None
    several = count > 1
    faster = 2 if width <= 1 and found in known.eight_bit else 1
    return Device(
        name=found,
        gpus=count,
        bytes_per_s=count * known.gpus[found][1] * 1e12 * BANDWIDTH_SHARE[several],
        flops=count * known.tflops[found] * 1e12 * faster * COMPUTE_SHARE[several],
    )


def of_model(model: Model, tokens: tuple[int, int], devices: Iterable[str] = DEVICES) -> list[Latency]:
    """Predict a model's latency on each type of GPU, with the fewest GPUs that can hold the model. Returns an
    empty list if the model's size is unknown."""
    if model.params_b is None:
        return []
    width, found = BYTES_PER_PARAM[model.precision], list[Latency]()
    for name in devices:
        device = gpu(name, gpus_for(model.params_b, width, hardware.table().gpus[name][0]), width)
        if device is not None:
            active = model.active_params_b or model.params_b
            found.append(predict(device, model.name, active, width, tokens))
    return found


def faster_by(small: Sequence[Latency], large: Sequence[Latency]) -> tuple[float, float] | None:
    """Return the speedup of the small model over the large one, as the minimum and maximum factor across
    devices. Returns `None` if the lists have no device in common."""
    of = {one.device: one for one in large}
    ratios = [of[one.device].answer_ms / one.answer_ms for one in small if one.device in of]
    return (min(ratios), max(ratios)) if ratios else None
