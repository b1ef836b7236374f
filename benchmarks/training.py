"""Training speed, memory and loss of the local engine beside what people would run instead, on the same work.

    .venv/bin/python benchmarks/training.py                          # after make env, which brings TRL
    .venv/bin/python benchmarks/training.py --llamafactory /tmp/lf   # also LLaMA-Factory; makes its
                                                                     # environment there, once
    ... --threads 2 --seeds 5 --json training.json                   # for figures that are told
    ... --rows 48 --turns 12                                         # long rows

It prints a table for the README, the machine named. Where nothing else runs, wall time counts; elsewhere only
the ratios by processor time do. Contenders take turns within one run.

Every contender trains the same adapter (LoRA r=16 on all linear layers over NF4 with double quantisation, in
bf16 or fp32, whichever the CPU is made for) from the same weights on the same rows, 16 rows (or their tokens,
where rows are packed) to the optimiser step, the same learning rates, in a process of its own. Counted are
the rows' own tokens, padding left out. Speed is told per second and per second of processor time, the second
being the fairer one on a machine that does other things. Afterwards one and the same code computes the loss
of each adapter on held-out rows.

The model is random: speed does not depend on what a model knows, and a loss that falls from ln(vocabulary)
shows what each contender learnt from the same tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median
from typing import Any

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src" / "orchestrate" / "bundled"
ORDERS = BUNDLED / "orders"
TINY = BUNDLED / "tiny-chat"
DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
BATCH, RATE = 16, 1e-3
SHAPES = {
    "27M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8},
    "8M": {"hidden_size": 320, "num_hidden_layers": 6, "intermediate_size": 896, "num_attention_heads": 5},
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def rows(path: Path, count: int) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


def load(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What is trained on: the demo's chats, or as many of them as make `--turns` questions in one row."""
    chats = [r["messages"] for r in rows(ORDERS / "train.jsonl", args.rows * args.turns)]
    joined = [[m for chat in chats[i :: args.rows] for m in chat] for i in range(args.rows)]
    return [{"messages": messages} for messages in joined]


def make_model(folder: Path, shape: str) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    config = LlamaConfig(
        **SHAPES[shape],
        num_key_value_heads=SHAPES[shape]["num_attention_heads"],
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


class Clock:
    """Times the training loop alone: libraries, loading and encoding are left out."""

    def __enter__(self) -> Clock:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


# -- the engine ------------------------------------------------------------------------------------------


def engine(options: dict[str, Any]) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        from orchestrate.local.job import Adapter, Hyper, LocalJob, Supervised
        from orchestrate.local.run.rundir import RunDir, now
        from orchestrate.local.run.session import Session

        data = args.work / "engine.jsonl"
        with data.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps({"messages": r["messages"]}) + "\n" for r in load(args))
        hyper = Hyper(
            epochs=1, batch_size=BATCH, learning_rate=RATE, schedule="linear", warmup_ratio=0.0, **options
        )
        job = LocalJob(
            ref=args.out.name,
            model=str(args.model),
            model_name="random",
            train=str(data),
            method=Supervised(),
            adapter=Adapter(type="qlora", r=16, alpha=32.0),
            hyper=hyper,
            threads=args.threads,
            precision=args.precision,
            created_at=now(),
            seed=args.seed,
        )
        run_dir, _ = RunDir.make(args.work / "runs", job)
        session = Session(run_dir, job, lambda: None, lambda _: None)
        session.loop.restore()
        with Clock() as clock:
            session.loop.run()
        session.loaded.model.save_pretrained(args.out)
        return {"wall": clock.wall, "cpu": clock.cpu, "steps": session.loop.progress.step}

    return run


# -- the others ------------------------------------------------------------------------------------------


def quantization(precision: str) -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, DTYPES[precision]),
    )


def base_model(args: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        args.model,
        dtype=getattr(torch, DTYPES[args.precision]),
        quantization_config=quantization(args.precision),
    )


COMMON: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": RATE,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 50,
    "dataloader_pin_memory": False,
    "optim": "adamw_torch_fused",
}


def common(args: argparse.Namespace) -> dict[str, Any]:
    return {**COMMON, "bf16": args.precision == "bf16", "seed": args.seed}


def trl(options: dict[str, Any]) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        torch.set_num_threads(args.threads)
        data = Dataset.from_list([{"messages": r["messages"]} for r in load(args)])
        config = SFTConfig(output_dir=str(args.work / "trl"), **{**common(args), **options})
        trainer = SFTTrainer(
            model=base_model(args),
            args=config,
            train_dataset=data,
            processing_class=AutoTokenizer.from_pretrained(args.model),
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        )
        with Clock() as clock:
            trainer.train()
        trainer.model.save_pretrained(args.out)
        return {"wall": clock.wall, "cpu": clock.cpu, "steps": trainer.state.global_step}

    return run


def peft_trainer(args: argparse.Namespace) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data: list[dict[str, Any]] = []
    for row in load(args):
        out = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        labels = [i if m else -100 for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]
        data.append(
            {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"], "labels": labels}
        )
    model = get_peft_model(base_model(args), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    settings = {
        **common(args),
        "per_device_train_batch_size": BATCH,
        "train_sampling_strategy": "group_by_length",
    }
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output_dir=str(args.work / "peft"), **settings),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    with Clock() as clock:
        trainer.train()
    model.save_pretrained(args.out)
    return {"wall": clock.wall, "cpu": clock.cpu, "steps": trainer.state.global_step}


STUB_AUDIO = "__version__ = '0'\n"
LLAMA_FACTORY = "llamafactory==0.9.5"


def llama_factory(args: argparse.Namespace) -> dict[str, Any]:
    """In an environment of its own; a stub stands for torchaudio, which it imports and SFT does not use."""
    stub = args.work / "stub" / "torchaudio"
    stub.mkdir(parents=True, exist_ok=True)
    (stub / "__init__.py").write_text(STUB_AUDIO)
    sys.path.insert(0, str(stub.parent))
    import torch
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]
    from transformers import TrainerCallback

    torch.set_num_threads(args.threads)
    folder = args.work / "llama-factory"
    folder.mkdir(exist_ok=True)
    data = [{"messages": r["messages"]} for r in load(args)]
    (folder / "rows.json").write_text(json.dumps(data), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": tags,
    }
    (folder / "dataset_info.json").write_text(json.dumps({"rows": about}), encoding="utf-8")
    clock, steps = Clock(), [0]

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.__enter__()

        def on_train_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            clock.__exit__()
            steps[0] = state.global_step

    own = {k: v for k, v in common(args).items() if k != "logging_steps"}
    run_exp(
        {
            **own,
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": str(args.model),
            "dataset": "rows",
            "dataset_dir": str(folder),
            "template": "chatml",
            "finetuning_type": "lora",
            "lora_rank": LORA["r"],
            "lora_alpha": LORA["lora_alpha"],
            "lora_target": "all",
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "cutoff_len": 1024,
            "per_device_train_batch_size": BATCH,
            "output_dir": str(args.out),
            "overwrite_output_dir": True,
        },
        [Timed()],
    )
    return {"wall": clock.wall, "cpu": clock.cpu, "steps": steps[0]}


def sorted_by_length(args: argparse.Namespace) -> dict[str, Any]:
    """As the engine does where rows are padded: like lengths meet in a step."""
    from orchestrate.local.encoding.encoded import NEAR, Rows

    Rows.window = lambda _self, _line: NEAR  # type: ignore[method-assign]
    return engine({})(args)


OWN = {"engine": engine({}), "engine, like lengths together": sorted_by_length}
OTHERS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "TRL, defaults": trl({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}),
    "TRL, like lengths together": trl(
        {
            "per_device_train_batch_size": BATCH,
            "assistant_only_loss": True,
            "gradient_checkpointing": False,
            "train_sampling_strategy": "group_by_length",
        }
    ),
    "TRL, packed": trl(
        # As many tokens to the step as 16 rows have on average.
        {
            "per_device_train_batch_size": 1,
            "assistant_only_loss": True,
            "gradient_checkpointing": False,
            "packing": True,
            "max_length": 1232,
        }
    ),
    "TRL, padding-free": trl(
        {
            "per_device_train_batch_size": BATCH,
            "assistant_only_loss": True,
            "gradient_checkpointing": False,
            "padding_free": True,
            "max_length": None,
        }
    ),
    "peft and Trainer": peft_trainer,
    "LLaMA-Factory": llama_factory,
}


# -- judging ------------------------------------------------------------------------------------------


def judge(args: argparse.Namespace, adapters: list[Path]) -> list[float]:
    """Held-out loss of each adapter on the assistant's tokens, by one code."""
    import torch
    from peft import PeftModel

    from orchestrate.local.encoding.encoded import encode_file
    from orchestrate.local.encoding.encoding import Template
    from orchestrate.local.model.head import Head
    from orchestrate.local.model.loaded import Loaded
    from orchestrate.local.model.loading import load_base, load_tokenizer
    from orchestrate.local.objectives.base import Objective

    torch.set_num_threads(args.threads)
    template = Template(load_tokenizer(args.model))
    path = args.work / "held-out.jsonl"
    with path.open("w", encoding="utf-8") as out:
        out.writelines(
            json.dumps({"messages": r["messages"]}) + "\n" for r in rows(ORDERS / "validation.jsonl", 100)
        )
    held_out, _ = encode_file(path, template, args.work / "held-out", max_length=None)
    found: list[float] = []
    for folder in adapters:
        inner = load_base(args.model, four_bit=True, device=torch.device("cpu"))
        model = PeftModel.from_pretrained(inner, str(folder))
        loaded = Loaded(model, inner, Head.of(inner), torch.device("cpu"))
        found.append(Objective(loaded, 0).evaluate(held_out, 4096)["valid_loss"])
    return found


def work_tokens(args: argparse.Namespace) -> tuple[int, int]:
    """(all, trained) tokens of the rows, padding left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    total = trained = 0
    for row in load(args):
        out = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        total, trained = total + len(out["input_ids"]), trained + sum(out["assistant_masks"])
    return total, trained


def contend(args: argparse.Namespace, name: str, python: str, seed: int) -> dict[str, Any] | None:
    out = args.work / f"adapter-{len(list(args.work.iterdir()))}"
    told = {
        "contender": name,
        "model": args.model,
        "work": args.work,
        "out": out,
        "seed": seed,
        **{given: getattr(args, given) for given in ("rows", "turns", "threads", "precision")},
    }
    command = [python, __file__, *(part for key, value in told.items() for part in (f"--{key}", str(value)))]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        print(f"{name}: failed\n{done.stderr[-1500:]}", file=sys.stderr)
        return None
    return {"name": name, "seed": seed, **json.loads(done.stdout.splitlines()[-1]), "adapter": str(out)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="of another environment that has TRL", default=sys.executable)
    parser.add_argument("--llamafactory", type=Path, help="folder of its environment, made when absent")
    parser.add_argument("--shape", choices=SHAPES, default="27M")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--precision", choices=["auto", *DTYPES], default="auto", help="of all; auto: what suits this CPU"
    )
    parser.add_argument("--only", help="names of contenders, separated by ;")
    parser.add_argument("--turns", type=int, default=1, help="chats of the demo in each row")
    parser.add_argument("--seeds", type=int, default=1, help="each contender trains with so many")
    parser.add_argument("--json", type=Path, help="the figures, for docs/figures.py")
    for hidden in ("--contender", "--model", "--work", "--out", "--seed"):
        kind = {"--contender": str, "--seed": int}.get(hidden, Path)
        parser.add_argument(hidden, help=argparse.SUPPRESS, type=kind)
    args = parser.parse_args()
    if args.contender:
        result = {**OWN, **OTHERS}[args.contender](args)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.work = Path(folder)
        args.model = args.work / "model"
        args.precision = precision(args.precision)
        make_model(args.model, args.shape)
        compare(args)


def precision(asked: str) -> str:
    from orchestrate.local.model import engines

    return engines.precision(asked, "cpu").name


def environment(folder: Path) -> str:
    """The interpreter of LLaMA-Factory's environment."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", LLAMA_FACTORY, "bitsandbytes"], check=True)
    return str(python)


def contenders(args: argparse.Namespace) -> dict[str, str]:
    """Name -> interpreter."""
    found = dict.fromkeys(OWN, sys.executable)
    if args.python != sys.executable or find_spec("trl"):
        found.update(dict.fromkeys((n for n in OTHERS if n != "LLaMA-Factory"), args.python))
    if args.llamafactory:
        found["LLaMA-Factory"] = environment(args.llamafactory)
    return {n: p for n, p in found.items() if not args.only or n in args.only.split(";")}


def compare(args: argparse.Namespace) -> None:
    from orchestrate.local import machine

    load, (total, trained) = machine.load(), work_tokens(args)
    found: list[dict[str, Any]] = []
    for seed in range(args.seeds):
        for name, python in contenders(args).items():
            if one := contend(args, name, python, seed):
                found.append(one)
    losses = judge(args, [Path(one.pop("adapter")) for one in found])
    for one, loss in zip(found, losses, strict=True):
        one["held_out_loss"] = loss
    figures = {
        "benchmark": "training",
        "machine": f"{machine.cpu_name()}, {args.threads} of {machine.cores()} threads",
        "instructions": instructions(),
        "load_average": load,
        "day": str(date.today()),
        "model": f"a random {args.shape} Llama, NF4, {args.precision}, LoRA r=16",
        "rows": args.rows,
        "turns": args.turns,
        "tokens": total,
        "trained_tokens": trained,
        "runs": found,
    }
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(table(figures))


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


def table(figures: dict[str, Any]) -> str:
    """Markdown. Of several seeds the median of what each took, beside the engine with the same seed, and each
    one's loss. On a machine that does other things wall time says nothing, and is left out."""
    of = {name: [r for r in figures["runs"] if r["name"] == name] for name in OWN | OTHERS}
    own = {r["seed"]: r for r in of["engine"]}
    trained = figures["trained_tokens"]
    clocks = {"wall": "second", "cpu": "CPU second"}
    if figures["load_average"] > 1:
        del clocks["wall"]
    heads = ["", "steps", *(f"trained tokens per {told}" for told in clocks.values())]
    heads += [f"the engine is ahead by {told}s" for told in clocks.values()]
    each = f" of {figures['turns']} chats each" if figures["turns"] > 1 else ""
    lines = [
        "{machine} ({instructions}), load {load_average:.1f}; {day}; {model};\n{rows} rows{each}, {tokens:,} "
        "tokens, {trained_tokens:,} trained.".format(**figures, each=each),
        "",
        f"| {' | '.join([*heads, 'peak MB', 'held-out loss'])} |",
        f"|---|{'---:|' * len(heads)}---|",
    ]
    for name, runs in of.items():
        if not runs:
            continue
        cells = [name, str(runs[0]["steps"])]
        cells += [f"{median(trained / r[clock] for r in runs):.0f}" for clock in clocks]
        for clock in clocks:
            ratios = [r[clock] / own[r["seed"]][clock] for r in runs if r["seed"] in own]
            cells.append("" if name == "engine" or not ratios else f"{median(ratios):.2f} x")
        peaks = [r["peak_mb"] for r in runs if "peak_mb" in r]
        cells.append(f"{median(peaks):.0f}" if peaks else "")
        losses = [r["held_out_loss"] for r in runs]
        of_seeds = " ".join(f"{loss:.3f}" for loss in losses)
        cells.append(f"**{mean(losses):.3f}** ({of_seeds})" if len(losses) > 1 else of_seeds)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
