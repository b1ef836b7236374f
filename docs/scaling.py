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
from orchestrate.costing import Rate, gpu_memory_gb
from orchestrate.local.plan import fitting, throughput
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
    size = gpu_memory_gb(gpu)
    assert size is not None, gpu
    found = fitting.of_job("a/model", body, billions=MODELS[model], gpu_bytes=int(size * 1e9))
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
        needed = f"{case.plan.total_bytes / 1e9:,.0f} of {gpu_memory_gb(case.gpu):,.0f} GB"
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

By `python docs/scaling.py`, from the memory plan, the speeds and the dated rates of which quotes are made.
The GPU's speed in a training step is taken as 35 to 45% of its dense bf16 peak as its maker states it, 4
operations for each weight and token where the base is frozen, 6 where all weights are trained. None of
these speeds is measured: a quote takes nine of ten to lie within a factor of 3.7 either way. Memory: one
row of 2,048 tokens at a time with gradient checkpointing, LoRA of rank 16 on all linear layers.

{table}

Machines of other hosts are rented through SkyPilot (`--provider sky`, [places](places.md)).

Several GPUs of one machine hold the whole model each where it fits, else a share of every weight. On none
of these alone fits: {unfit}. In shares each of eight GPUs holds {spread}.

## What is not offered

- A run on several machines, except on a Ray cluster (`ray`, [places](places.md#a-ray-cluster)). Elsewhere
  a run has one machine: with several GPUs one process for each (`processes`), the whole model or a share
  of every weight in each. A machine that is taken away is replaced by another, on which the run goes on
  from its newest checkpoint. KubeRay's clusters have the one machine that is their head.
- Workers that come and go (`min_processes`) where each has a share of every weight: the plan is for all
  of them.
- `anyscale://`, the address of a cluster that is running at Anyscale: `--provider anyscale` makes a job with
  a machine of its own. Spot machines are not offered there: the worker has the head of the job's cluster, for
  which Anyscale's API has no spot. No price is built in, as the bill is that of the user's cloud and a fee.
- `ray://`, the address of Ray Client: give the http address of the same cluster's dashboard
  ([places](places.md)). Ray 2.60 would connect a Ray Client, which takes a driver on the cluster, the
  same Ray and Python at both ends and the one connection of the whole process, ask it for
  `dashboard_url`, which is the address as the head sees itself, and put `http://` before it
  (`ray_client_address_to_api_server_url`). Outside loopback that is an address without TLS in every case,
  over which a token and the keys for the depot would go in the clear: our rule refuses it. On loopback
  `127.0.0.1:8265` behind a tunnel is another machine's, or nothing. And a run is found again by its
  cluster's address, which would have to be asked for each time.

## Against published figures

- Weights of a 70B model in 4 bits: 35.3 GB by 4 bits each, more with the constants of NF4 and the
  embeddings in 16 bits. The plan above has 48 GB with one row. The peft guide to FSDP with QLoRA states
  35.6 GB on each of two GPUs, where each holds the activations of its own rows and what it gathers; the plan
  has {two} for two.
- Hours: the usual 6 x N x D counts 4.9e19 operations for 8.2B and 10^9 tokens; at 40% of an H100's 989
  TFLOP/s that is 35 hours. With LoRA the gradients of the base's weights, a third of
  those operations, are skipped.

## What could not be run here

No GPU and no account was available. A Ray cluster ran for real, of one head with two CPUs, its worker and its
head killed on the way; and one of two nodes with a CPU each, both on one machine, on which two workers of Ray
Train trained what one process trains, each step's loss to a thousandth of itself, and of which a worker, the
job and a node were killed. Of Hugging Face Jobs the real client ran against a stand-in for its HTTP, with
real training in processes that had the job's environment alone, and the depot behind a server that speaks S3
(moto). Of KubeRay the real client of Kubernetes ran against a stand-in that takes what the operator's
schema of a RayJob allows. SkyPilot's own client and API server took our jobs, with answers lost between the
two, and its optimizer chose machines for them on catalogs of a fixture; no cloud was reached. Anyscale's own
client (0.26.112) ran against a stand-in for its HTTP that takes and gives what the client's models describe,
with real training in processes that a shell started by the jobs' entrypoints. Not known without an account:
whether its list has a job at once, what is in its images (the entrypoint brings `uv` where it is missing),
how long a machine takes to come, and what is billed. Two processes
trained over Gloo on a CPU, with the whole model and with shares of it, NF4 too; what was trained in shares
was merged and exported, and says in plain PEFT what the run of one process says. NCCL did not run. Not run:
a depot at `hf://` or `gs://`, the hour of a real GPU, and so none of
the hours and dollars above.
"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
