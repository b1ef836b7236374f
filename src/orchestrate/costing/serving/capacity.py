"""How many GPUs serve a model, and how many requests a replica of it carries: a model for sizing, with the
measurements that it was fitted to. It knows nothing of latency limits, long contexts and cached prompts."""

from __future__ import annotations

import math
from decimal import Decimal

from orchestrate.catalog import ModelOnHost
from orchestrate.costing import hardware
from orchestrate.costing.serving.traffic import Traffic
from orchestrate.types import Record

BYTES_PER_PARAM = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 0.56}
"""Of the weights as they are published. MXFP4: gpt-oss-120b's checkpoint of 65 GB over its 116.8 billion
parameters; not all of its tensors have four bits."""
HEADROOM = 1.2
"""Of the weights, for cache and activations."""
REFERENCE_TB_S = 3.35
"""Memory bandwidth of the H100 SXM, by which the speed of other GPUs is scaled: measured, an H200 with 1.43
times that bandwidth is 1.2 to 1.4 times as fast."""
SPEED = (25_000.0, 50_000.0, 160_000.0)
"""Output tokens per second of one H100, times billions of parameters (of a mixture of experts the geometric
mean of all and of the active ones). High: NVIDIA's TensorRT-LLM performance overview, 8-bit weights at the
highest load without a latency limit; six models between 8B and 405B, dense ones and mixtures, give 133,000 to
212,000. Expected: GPUStack's performance lab, Qwen3-32B with vLLM as it comes, 16-bit weights, one H100,
ShareGPT: 2,353 tokens a second in and out. Low: half of that, for adapters and answers that may not wait; a
judgement."""
SPEED_SOURCE = "vLLM measured by GPUStack, at most TensorRT-LLM measured by NVIDIA"
PREFILL_SPEEDUP = 3
"""An input token takes a third of the time of an output token: 3.4 and 2.3 in NVIDIA's figures of Llama 3.1
8B and 3.3 70B, from 1,000 in and out against 2,048 in and 128 out."""
UTILISATION = Decimal(1) / 3
"""Mean load over what a replica can do: the busiest hour has three times the mean."""


class Replica(Record, frozen=True, kw_only=True):
    """A copy of a model on as many GPUs of a kind as its weights need."""

    gpu: str
    gpus: int
    bytes_per_param: float
    tokens_per_second: tuple[float, float, float]
    """Output tokens, low, expected and high; no input beside them."""


def effective_b(params_b: float, active_b: float | None) -> float:
    """The size that decides about speed, in billions of parameters; at least 1."""
    return max(math.sqrt(params_b * (active_b or params_b)), 1.0)


def replica(resolved: ModelOnHost, gpu: str) -> Replica | None:
    """`None` where the size of the model or the memory of the GPU is not known. GPUs come in powers of two,
    as tensor parallelism wants them."""
    name = hardware.closest(gpu, hardware.table().gpus)
    params_b = resolved.params_b
    if name is None or params_b is None:
        return None
    memory_gb, tb_s = hardware.table().gpus[name]
    model = resolved.model
    width = BYTES_PER_PARAM[model.precision if model else "bf16"]
    share = params_b * width * HEADROOM / memory_gb
    gpus = 1 if share <= 1 else 2 ** math.ceil(math.log2(share))
    factor = gpus * tb_s / REFERENCE_TB_S / effective_b(params_b, model.active_params_b if model else None)
    low, expected, high = (speed * factor for speed in SPEED)
    return Replica(gpu=name, gpus=gpus, bytes_per_param=width, tokens_per_second=(low, expected, high))


def seconds_per_request(traffic: Traffic, tokens_per_second: float) -> float:
    tokens = traffic.output_tokens + traffic.input_tokens / PREFILL_SPEEDUP
    return tokens / tokens_per_second


def busiest_share(hours_per_day: float, utilisation: Decimal = UTILISATION) -> float:
    """Share of a day's requests that come in its busiest hour, while the model is up so long: an eighth, as
    long as the day has eight hours."""
    return max(1 / (24 * float(utilisation)), 1 / hours_per_day)


def requests_per_day(
    traffic: Traffic, tokens_per_second: float, hours_per_day: float, utilisation: Decimal = UTILISATION
) -> int:
    """What one replica carries, its busiest hour included."""
    seconds = seconds_per_request(traffic, tokens_per_second)
    return math.floor(3600 / (seconds * busiest_share(hours_per_day, utilisation))) if seconds else 2**53


def replicas(traffic: Traffic, carried: int) -> int:
    """That carry the traffic when each carries so many requests a day."""
    return max(1, math.ceil(traffic.requests_per_day / max(carried, 1)))
