"""Training speed, memory and loss of the local engine beside what people would run instead, on the same work.

    .venv/bin/python benchmarks/training.py --load all --threads 2 --seeds 5 --json docs/figures/training.json
                                             # the tables of docs/benchmarks.md; make env brings TRL
    ... --load "short chats"                 # one load; see training_loads.py
    ... --llamafactory /tmp/lf               # also LLaMA-Factory; makes its environment there, once

Contenders take turns within one run, each in a process of its own: all of them train every load with the
first seed, the engine and its rival in loss with the others. With `all` short chats are trained with one
thread too, and on a CPU with AMX also without it. A run is kept in the JSON as soon as it has ended.

Every contender trains the same adapter (LoRA r=16 on all linear layers over NF4 with double quantisation, in
bf16 or fp32, whichever the device is made for) from the same weights on the same rows, as many (or their
tokens, where rows are packed) to the optimizer step, the same learning rates; all with the same settings of
torch's caches and of the allocator, the engine in the environment of its workers. Counted are the rows' own
tokens, padding left out. Speed is told by the second where nothing else ran, else by the second of processor
time: what other work took meanwhile is kept with each run. Loading and encoding are left out, the engine's
look at its own speed before the first step is not. Afterwards one and the same code computes the loss of each
adapter on held-out rows of the same kind.

The model is random: speed does not depend on what a model knows, and a loss that falls from ln(vocabulary)
shows what each contender learnt from the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import training_contenders as contenders
from measured_on import Meter, write
from training_contenders import DTYPES, LLAMA_FACTORY, OWN, RIVAL, Work
from training_loads import LOADS, SHAPES, counted, make_model
from training_table import tables

LLAMA_FACTORY_PACKAGE = "llamafactory==0.9.5"
WITHOUT_AMX = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}
SHORT = "short chats"
DEVELOPMENT = [name for name in OWN if name != "engine"]
"""Run only where they are named."""


@dataclass(frozen=True)
class Case:
    """A load, and how it is trained."""

    load: str
    threads: int
    seeds: int = 1
    note: str = ""
    environment: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def name(self) -> str:
        return self.load + self.note


def cases(args: argparse.Namespace) -> Iterator[Case]:
    if args.load != "all":
        yield Case(args.load, args.threads, args.seeds)
        return
    yield Case(SHORT, args.threads, args.seeds)
    for name in LOADS:
        if name != SHORT:
            yield Case(name, args.threads)
    if args.device == "cuda":
        return
    if args.threads > 1:
        yield Case(SHORT, 1, note=", one thread")
    if "amx_bf16" in cpu_flags():
        yield Case(SHORT, args.threads, note=", without AMX", environment=WITHOUT_AMX)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--load", choices=["all", *LOADS], default=SHORT)
    parser.add_argument("--python", help="of another environment that has TRL", default=sys.executable)
    parser.add_argument("--llamafactory", type=Path, help="folder of its environment, made when absent")
    parser.add_argument("--shape", choices=SHAPES, default="27M")
    parser.add_argument("--rows", type=int, help="in the place of the load's own number")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--precision", choices=["auto", *DTYPES], default="auto", help="of all; auto: what suits the device"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help="names of contenders, separated by ;")
    parser.add_argument(
        "--seeds", type=int, default=1, help="the engine and its rival train the first load with so many"
    )
    parser.add_argument("--json", type=Path, help="the figures, for docs/figures.py")
    parser.add_argument("--work", nargs=2, metavar=("CONTENDER", "WORK"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(contenders.run(args.work[0], Work(**json.loads(args.work[1])))))
        return
    figures = about(args)
    with tempfile.TemporaryDirectory() as folder:
        for case in cases(args):
            for found in compared(args, case, Path(folder) / str(len(figures["cases"]))):
                figures["cases"] = [*(c for c in figures["cases"] if c["name"] != case.name), found]
                if args.json:  # what is there stays when a later run fails
                    write(args.json, figures)
    print(tables(figures))


def about(args: argparse.Namespace) -> dict[str, Any]:
    from orchestrate.local import machine
    from orchestrate.local import model as engines

    args.precision = engines.precision(args.precision, args.device).name
    gpus = [gpu.name for gpu in machine.gpus()] if args.device == "cuda" else []
    return {
        "benchmark": "training",
        "machine": ", ".join([*gpus[:1], machine.cpu_name(), f"{args.threads} of {machine.cores()} threads"]),
        "instructions": instructions(),
        "load_average": machine.load(),
        "day": str(date.today()),
        "torch": version("torch"),
        "trl": version("trl") if find_spec("trl") else "of another environment",
        "model": f"a random {args.shape} Llama where a load names no other, NF4, {args.precision}, LoRA r=16",
        "cases": list[dict[str, Any]](),
    }


def compared(args: argparse.Namespace, case: Case, folder: Path) -> Iterator[dict[str, Any]]:
    """What is known after each run, and after all of them with their losses."""
    load, model = LOADS[case.load], folder / "model"
    folder.mkdir()
    make_model(model, load.shape or args.shape, load.vocabulary)
    rows = args.rows or load.rows
    counts = counted(load, load.train(rows), model)
    tokens = sum(n for n, _ in counts)
    work = Work(
        load_name=case.load,
        rows=rows,
        model=str(model),
        folder=str(folder),
        out="",
        seed=0,
        threads=case.threads,
        precision=args.precision,
        tokens=round(tokens / len(counts)),
        longest=max(n for n, _ in counts),
        device=args.device,
    )
    found: dict[str, Any] = {
        "name": case.name,
        "threads": case.threads,
        "environment": case.environment,
        "rows": rows,
        "longest": work.longest,
        "tokens": tokens,
        "trained_tokens": sum(n for _, n in counts),
        "runs": list[dict[str, Any]](),
    }
    adapters: list[str] = []
    for seed in range(case.seeds):
        for name, python in pythons(args, case, seed).items():
            out = str(folder / f"adapter-{len(adapters)}")
            if one := contend(python, name, replace(work, out=out, seed=seed), case):
                found["runs"].append({**one, "held_out_loss": None})
                adapters.append(out)
                yield found
    losses = contenders.judge(replace(work, out=str(folder / "judging")), adapters)
    for one, loss in zip(found["runs"], losses, strict=True):
        one["held_out_loss"] = loss
    yield found


def pythons(args: argparse.Namespace, case: Case, seed: int) -> dict[str, str]:
    """Who takes part, each with its interpreter."""
    asked = args.only.split(";") if args.only else ()
    if not args.only and seed > 0:
        asked = ("engine", RIVAL)
    found: dict[str, str] = {}
    for name in contenders.contenders_for(LOADS[case.load]):
        if (asked and name not in asked) or (not asked and name in DEVELOPMENT):
            continue
        if name == LLAMA_FACTORY:
            if args.llamafactory:
                found[name] = environment(args.llamafactory)
        elif name in OWN:
            found[name] = sys.executable
        elif args.python != sys.executable or find_spec("trl"):
            found[name] = args.python
    return found


def contend(python: str, name: str, work: Work, case: Case) -> dict[str, Any] | None:
    from orchestrate.local.run.launcher import worker_environment

    own = worker_environment(work.threads)
    same = {k: own[k] for k in own if k.endswith("_CACHE_CAPACITY") or k.startswith("MALLOC_")}
    env = own if name in OWN else {**os.environ, **same}
    env |= {"OMP_NUM_THREADS": str(work.threads), "TOKENIZERS_PARALLELISM": "false", **case.environment}
    before = Meter.now()
    done = subprocess.run(
        [python, str(Path(__file__).resolve()), "--work", name, work.json()],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    others = before.others()
    told = f"{case.name}, seed {work.seed}, {name}"
    if done.returncode:
        print(f"{told}: failed\n{done.stderr[-1500:]}", file=sys.stderr, flush=True)
        return None
    one = {"name": name, "seed": work.seed, "others": others, **json.loads(done.stdout.splitlines()[-1])}
    # A core that others take makes a run slow, and without a word it seems to stand still.
    print(
        f"{told}: {one['wall']:.1f} s, {one['cpu']:.1f} CPU s, {one['peak_mb']:.0f} MB; "
        f"others took {others:.1f} cores meanwhile",
        file=sys.stderr,
        flush=True,
    )
    return one


def environment(folder: Path) -> str:
    """The interpreter of LLaMA-Factory's environment."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [LLAMA_FACTORY_PACKAGE, "bitsandbytes"]
        subprocess.run([str(python), "-m", "pip", "install", "-q", *packages], check=True)
    return str(python)


def instructions() -> str:
    """What of a CPU's instructions decides how bf16 is multiplied."""
    return next(
        (told for flag, told in (("amx_bf16", "AMX"), ("avx512_bf16", "AVX512-BF16")) if flag in cpu_flags()),
        "no instructions for bf16",
    )


def cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


if __name__ == "__main__":
    main()
