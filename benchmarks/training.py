"""Training speed, memory and loss of the local engine beside what people would run instead, on the same work.

    python benchmarks/training.py                                    # the engine alone
    python -m venv /tmp/trl && /tmp/trl/bin/pip install -e '.[local]' trl
    python benchmarks/training.py --python /tmp/trl/bin/python       # beside TRL's SFTTrainer and
    transformers' Trainer

Every contender trains the same adapter (LoRA r=16 on all linear layers over NF4 with double quantisation,
bf16) from the same weights on the same rows, 16 rows (or their tokens, where rows are packed) to the
optimiser step, the same learning rates, in a process of its own. Counted are the rows' own tokens, padding
left out. Speed is told per second and per second of processor time, the second being the fairer one on a
machine that does other things. Afterwards one and the same code computes the loss of each adapter on held-out
rows.

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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
ORDERS = ROOT / "fixtures" / "datasets" / "orders"
TINY = ROOT / "fixtures" / "models" / "tiny-chat"
BATCH, RATE = 16, 1e-3
SHAPES = {
    "27M": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 1408, "num_attention_heads": 8},
    "8M": {"hidden_size": 320, "num_hidden_layers": 6, "intermediate_size": 896, "num_attention_heads": 5},
}
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


def rows(path: Path, count: int) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]


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
        from orchestrate.local.rundir import Hyper, LocalJob, RunDir, now
        from orchestrate.local.session import Session

        data = args.work / "engine.jsonl"
        with data.open("w", encoding="utf-8") as out:
            out.writelines(
                json.dumps({"messages": r["messages"]}) + "\n"
                for r in rows(ORDERS / "train.jsonl", args.rows)
            )
        hyper = Hyper(
            epochs=1, batch_size=BATCH, learning_rate=RATE, schedule="linear", warmup_ratio=0.0, **options
        )
        job = LocalJob(
            ref=args.out.name,
            model=str(args.model),
            model_name="random",
            train=str(data),
            method={"type": "sft"},
            adapter={"type": "qlora", "r": 16, "alpha": 32.0},
            hyper=hyper,
            threads=args.threads,
            created_at=now(),
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


def quantization() -> Any:
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def base_model(args: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.bfloat16, quantization_config=quantization()
    )


COMMON: dict[str, Any] = {
    "num_train_epochs": 1,
    "learning_rate": RATE,
    "lr_scheduler_type": "linear",
    "warmup_steps": 0,
    "bf16": True,
    "use_cpu": True,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "logging_steps": 50,
    "seed": 0,
    "dataloader_pin_memory": False,
    "optim": "adamw_torch_fused",
}


def trl(options: dict[str, Any]) -> Callable[[argparse.Namespace], dict[str, Any]]:
    def run(args: argparse.Namespace) -> dict[str, Any]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        torch.set_num_threads(args.threads)
        data = Dataset.from_list(
            [{"messages": r["messages"]} for r in rows(ORDERS / "train.jsonl", args.rows)]
        )
        config = SFTConfig(output_dir=str(args.work / "trl"), **{**COMMON, **options})
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
    for row in rows(ORDERS / "train.jsonl", args.rows):
        out = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        labels = [i if m else -100 for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]
        data.append(
            {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"], "labels": labels}
        )
    model = get_peft_model(base_model(args), LoraConfig(**LORA, task_type="CAUSAL_LM"))
    settings = {**COMMON, "per_device_train_batch_size": BATCH, "train_sampling_strategy": "group_by_length"}
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


OWN = {"engine": engine({}), "engine, packed": engine({"packing": True})}
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
    "peft and Trainer": peft_trainer,
}


# -- judging ------------------------------------------------------------------------------------------


def judge(args: argparse.Namespace, adapters: dict[str, Path]) -> dict[str, float]:
    """Held-out loss of each adapter on the assistant's tokens, by one code."""
    import torch
    from peft import PeftModel

    from orchestrate.local.encoding import Template
    from orchestrate.local.loading import Loaded, load_base, load_tokenizer
    from orchestrate.local.losses import Head
    from orchestrate.local.rows import encode_file
    from orchestrate.local.stepping import Objective

    torch.set_num_threads(args.threads)
    template = Template.of(load_tokenizer(args.model))
    path = args.work / "held-out.jsonl"
    with path.open("w", encoding="utf-8") as out:
        out.writelines(
            json.dumps({"messages": r["messages"]}) + "\n" for r in rows(ORDERS / "validation.jsonl", 100)
        )
    held_out, _ = encode_file(path, template, pairs=False, max_length=None, train_on_inputs=False)
    found: dict[str, float] = {}
    for name, folder in adapters.items():
        inner = load_base(args.model, four_bit=True, device=torch.device("cpu"))
        model = PeftModel.from_pretrained(inner, str(folder))
        loaded = Loaded(model, inner, Head.of(inner), torch.device("cpu"))
        found[name] = Objective(loaded, 0).evaluate(held_out, 4096)["valid_loss"]
    return found


def work_tokens(args: argparse.Namespace) -> tuple[int, int]:
    """(all, trained) tokens of the rows, padding left out."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    total = trained = 0
    for row in rows(ORDERS / "train.jsonl", args.rows):
        out = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        total, trained = total + len(out["input_ids"]), trained + sum(out["assistant_masks"])
    return total, trained


def contend(args: argparse.Namespace, name: str, python: str) -> dict[str, Any] | None:
    out = args.work / f"adapter-{len(list(args.work.iterdir()))}"
    command = [
        python,
        __file__,
        "--contender",
        name,
        "--model",
        str(args.model),
        "--work",
        str(args.work),
        "--out",
        str(out),
        "--rows",
        str(args.rows),
        "--threads",
        str(args.threads),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        print(f"{name}: failed\n{done.stderr[-1500:]}", file=sys.stderr)
        return None
    return {**json.loads(done.stdout.splitlines()[-1]), "adapter": out}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--python", help="of the environment that has TRL beside this package")
    parser.add_argument("--shape", choices=SHAPES, default="27M")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1, help="the best of so many runs is told")
    for hidden in ("--contender", "--model", "--work", "--out"):
        parser.add_argument(hidden, help=argparse.SUPPRESS, type=str if hidden == "--contender" else Path)
    args = parser.parse_args()
    if args.contender:
        result = {**OWN, **OTHERS}[args.contender](args)
        result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(result))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.work = Path(folder)
        args.model = args.work / "model"
        make_model(args.model, args.shape)
        compare(args)


def compare(args: argparse.Namespace) -> None:
    total, trained = work_tokens(args)
    print(f"{args.rows} rows, {total} tokens, {trained} trained; {args.shape} model; {args.threads} threads")
    names = {
        **dict.fromkeys(OWN, sys.executable),
        **(dict.fromkeys(OTHERS, args.python) if args.python else {}),
    }
    results: dict[str, dict[str, Any]] = {}
    for _ in range(args.repeat):
        for name, python in names.items():
            one = contend(args, name, python)
            if one and (name not in results or one["cpu"] < results[name]["cpu"]):
                results[name] = one
    losses = judge(args, {name: r["adapter"] for name, r in results.items()})
    best = min((r["cpu"] for n, r in results.items() if n in OTHERS), default=None)
    print(
        f"{'':<28}{'steps':>6}{'tokens/s':>10}{'per CPU s':>11}{'trained/s':>11}{'peak MB':>9}"
        f"{'held-out loss':>15}"
    )
    for name, r in results.items():
        ahead = f"   {best / r['cpu']:.2f}x the best other" if best and name in OWN else ""
        print(
            f"{name:<28}{r['steps']:>6}{total / r['wall']:>10.0f}{total / r['cpu']:>11.0f}"
            f"{trained / r['wall']:>11.0f}"
            f"{r['peak_mb']:>9.0f}{losses[name]:>15.4f}{ahead}"
        )


if __name__ == "__main__":
    main()
