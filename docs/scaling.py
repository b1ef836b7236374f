"""Writes docs/scaling.md: memory, hours and dollars of 8B and 70B models over 10^9 tokens, by the memory
plan, the speeds and the rates that quotes are made of.

python docs/scaling.py
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from orchestrate import costing
from orchestrate.costing import Rate, gpu_memory_bytes
from orchestrate.local.plan import memory_fit, throughput
from orchestrate.types import MemoryPlan

PAGE = Path(__file__).with_name("scaling.md")
TOKENS = 10**9
LENGTH = 2048
MODELS = {"8B": 8.2, "70B": 70.6}
"""Billions of parameters: Qwen3 8B, Llama 3.3 70B."""
ADAPTERS = {"qlora": "QLoRA", "lora": "LoRA", "full": "all weights"}
GPUS = ("L4", "L40S", "A100 80GB", "RTX PRO 6000", "H100", "H200", "B200")
RENTED = "huggingface"
PLACES = {
    "huggingface": "hf-jobs",
    "runpod": "RunPod",
    "lambda": "Lambda",
    "vast": "Vast.ai",
    "nebius": "Nebius",
}


class Case(NamedTuple):
    model: str
    adapter: str
    gpu: str
    plan: MemoryPlan

    @property
    def hours(self) -> float:
        """4 operations per weight and token of a frozen base, 6 where all weights are trained."""
        operations = (6 if self.adapter == "full" else 4) * MODELS[self.model] * 1e9
        return TOKENS * operations / speed(self.gpu) / 3600


def speed(gpu: str) -> float:
    known = (value for key, value in throughput.GPU_OPERATIONS.items() if key in gpu)
    return next(known, throughput.OTHER_GPU_OPERATIONS)


def plan(model: str, adapter: str, gpu: str, processes: int = 1) -> MemoryPlan:
    """Rows of 2,048 tokens, one at a time, with gradient checkpointing: the least that a GPU must hold. With
    several processes each has a share of the weights."""
    body: dict[str, Any] = {
        "method": {"type": "sft"},
        "adapter": {"type": adapter, **({} if adapter == "full" else {"r": 16})},
        "precision": "bf16",
        "hyper": {
            "max_seq_length": LENGTH,
            "micro_batch": 1,
            "gradient_checkpointing": True,
            "optimizer": "adamw",
            "processes": processes,
            "sharded": processes > 1,
        },
    }
    size = gpu_memory_bytes(gpu)
    assert size is not None, gpu
    found = memory_fit.of_job("a/model", body, billions=MODELS[model], gpu_bytes=size)
    assert found is not None
    return found


def cases() -> Iterator[Case]:
    for model in MODELS:
        for adapter in ADAPTERS:
            for gpu in GPUS:
                yield Case(model, adapter, gpu, plan(model, adapter, gpu))


def cheapest(gpu: str, providers: frozenset[str]) -> Rate | None:
    """Of what the rates say of renting one by the hour, not of spot machines."""
    words = set(gpu.upper().split())
    found = [
        rate
        for rate in costing.built_in()
        if rate.provider in providers
        and "gpu_rental" in rate.methods
        and rate.usd_per_gpu_hour is not None
        and "spot" not in (rate.tier or "")
        and words <= set((rate.gpu or "").upper().replace("-", " ").split())
    ]
    return min(found, key=lambda rate: rate.usd_per_gpu_hour or Decimal(0), default=None)


def priced(case: Case, providers: frozenset[str]) -> str:
    rate = cheapest(case.gpu, providers)
    if rate is None or rate.usd_per_gpu_hour is None:
        return ""
    total = float(rate.usd_per_gpu_hour) * case.hours
    return f"${total:,.0f} (${rate.usd_per_gpu_hour:.2f} {PLACES[rate.provider]}, {rate.start})"


def table() -> Iterator[str]:
    yield "| model | trained | GPU | memory | 10^9 tokens | `--provider hf-jobs` | cheapest elsewhere |"
    yield "|---|---|---|---:|---:|---|---|"
    elsewhere = frozenset(PLACES) - {RENTED}
    for case in cases():
        if not case.plan.fits:
            continue
        has = gpu_memory_bytes(case.gpu) or 0
        needed = f"{case.plan.total_bytes / 1e9:,.0f} of {has / 1e9:,.0f} GB"
        row = (case.model, ADAPTERS[case.adapter], case.gpu, needed, f"{case.hours:,.0f} h")
        prices = (priced(case, frozenset({RENTED})), priced(case, elsewhere))
        yield f"| {' | '.join((*row, *prices))} |"


def unfit() -> Iterator[str]:
    """Models that fit on none of them, and what they take."""
    for model in MODELS:
        for adapter in ADAPTERS:
            plans = [plan(model, adapter, gpu) for gpu in GPUS]
            if not any(one.fits for one in plans):
                yield f"{ADAPTERS[adapter]} of a {model} model ({plans[0].total_bytes / 1e9:,.0f} GB)"


def spread() -> Iterator[str]:
    """What each of eight GPUs holds."""
    for model, adapter in (("70B", "full"), ("8B", "full"), ("70B", "qlora")):
        found = plan(model, adapter, "B200", 8)
        yield f"{found.total_bytes / 1e9:,.0f} GB ({ADAPTERS[adapter]} of {model})"


def page() -> str:
    two = plan("70B", "qlora", "H100", 2).total_bytes / 1e9
    filled = {"table": "\n".join(table()), "unfit": ", ".join(unfit()), "two": f"{two:.0f} GB"}
    filled["spread"] = "; ".join(spread())
    page = TEXT
    for name, text in filled.items():
        page = page.replace("{" + name + "}", text)
    return page


TEXT = """# How far one GPU goes

Look up how large a model trains on which GPU, how long a billion tokens take there, and what they
cost. For your own model and rows:

<!-- parsed, not run: another page runs it -->
```sh
orchestrate local memory qwen3-8b --device cuda --available 24 --gradient-checkpointing
```

The table assumes gradient checkpointing. Without that option the command keeps all activations and
prints about twice as much. For a model that isn't in the table, pass its size (`4B`, `14B`, `32B`).
`orchestrate plan -p local --gpu-memory 24GiB` does the same for your spec.

![The memory that tuning an 8B takes on a GPU of 24 GiB, by part](images/memory.svg)

Made by `python docs/scaling.py` from the memory plan, the speeds and the dated rates that quotes use.
A GPU's speed in a training step is assumed to be 35 to 45% of the dense bf16 peak that its manufacturer
states, with 4 operations per weight and token if the base is frozen and 6 if all weights are trained. None
of these speeds was measured: quotes assume that nine in ten runs are within a factor of 3.7 either way.
Memory is for one row of 2,048 tokens at a time with gradient checkpointing and LoRA of rank 16 on all
linear layers.

{table}

SkyPilot rents machines from other hosts (`--provider sky`, [places](places.md)).

Several GPUs in one machine each hold the entire model if it fits, and otherwise a share of every weight.
These fit on no single GPU: {unfit}. Sharded over eight GPUs, each holds {spread}.

## What is not offered

- A run on several machines, except on a Ray cluster (`ray`, [places](places.md#a-ray-cluster)). Elsewhere
  a run has one machine. With several GPUs it has one process for each (`processes`), with the entire model or
  a share of every weight. If a machine is taken away, the run continues on another one
  from its newest checkpoint. KubeRay's clusters consist of one machine, which is their head.
- Elastic workers (`min_processes`) with sharded weights: the plan assumes that all of them are there.
- `anyscale://`, the address of a cluster that runs at Anyscale: `--provider anyscale` creates a job with
  its own machine. Spot machines are not offered there, because the worker runs on the head of the job's
  cluster, and Anyscale's API has no spot heads. No price is built in, because you pay your cloud plus a fee.
- `ray://`, the address of a Ray Client: use the http address of the same cluster's dashboard instead
  ([places](places.md)). Ray 2.60 could look that address up, but only through a Ray Client, which needs a
  driver on the cluster, the same versions of Ray and Python on both ends, and the only connection of the
  process. It would ask for `dashboard_url`, the address from the head's point of view, and put `http://`
  before it (`ray_client_address_to_api_server_url`). Outside loopback that address never has TLS, so
  a token and the keys for the storage would be sent in the clear, which Orchestrate refuses. On loopback,
  `127.0.0.1:8265` behind a tunnel belongs to another machine or to none. And since runs are found by their
  cluster's address, it would have to be looked up each time.

## Compared with published figures

- Weights of a 70B model in 4 bits: 35.3 GB at 4 bits each, plus the constants of NF4 and the
  embeddings in 16 bits. The plan above has 48 GB with one row. The peft guide to FSDP with QLoRA states
  35.6 GB on each of two GPUs, each with the activations of its own rows and the gathered weights. The plan
  has {two} for two GPUs.
- Hours: the usual 6 x N x D gives 4.9e19 operations for 8.2B and 10^9 tokens. At 40% of an H100's 989
  TFLOP/s that is 35 hours. LoRA skips the gradients of the base's weights, a third of
  these operations.

## What was not tested

No GPU and no account was available. What was tested:

- **Ray**: a real cluster with a head and two CPUs, whose worker and head were killed during runs. Also a
  cluster of two nodes with one CPU each on one machine, where two workers of Ray Train trained the same as
  one process, with each step's loss within a thousandth, and where a worker, the job and a node were killed.
- **Hugging Face Jobs**: the real client against a simulated HTTP server, with real training in processes that
  had only the job's environment, and with the storage behind an S3 server (moto).
- **KubeRay**: the real Kubernetes client against a simulated server that accepts what the operator's schema
  of a RayJob allows.
- **SkyPilot**: its own client and API server accepted our jobs, with responses lost between the two. Its
  optimizer chose machines from prepared catalogs. No cloud was contacted.
- **Anyscale**: its own client (0.26.112) against a simulated HTTP server that follows the client's models,
  with real training in processes that a shell started from the jobs' entrypoints. Unknown without an account:
  whether its list shows a job at once, what its images contain (the entrypoint installs `uv` if it is
  missing), how long a machine takes to start, and what is billed.
- **Several processes**: two processes trained over Gloo on a CPU, replicated and sharded, with NF4 too. The
  sharded result was merged and exported, and gives the same outputs in plain PEFT as a run of one process.

Not tested: NCCL, storage at `hf://` or `gs://`, and the speed of a real GPU, so none of the hours and dollars
above.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
