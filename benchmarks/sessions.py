"""What a recipe over a training session costs against a job and against TRL: tokens a second of SFT.

    python benchmarks/sessions.py [--json FILE]

The same rows, the same LoRA adapter of rank 16 in fp32, one thread, the tiny model of the tests: its passes
are so short that what lies between them shows most. The recipe runs over `ft.session` on this machine, whose
engine is a process of its own; the job is the engine's loop, and TRL's is `SFTTrainer` with its own defaults
but for the batch and the schedule. Loading and the export are left out; the recipe's figure has the encoding
of the rows in it, and both of ours a save at the end. By processor time of this process and of those that it
started, since others use the machine meanwhile: in turns, and the least of several counts.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measured_on import Meter, about, write

from orchestrate import Orchestrator
from orchestrate.bundled import bundled
from orchestrate.settings import config

TINY = bundled("tiny-chat")
ROWS, BATCH, ROUNDS, RANK, ALPHA = 128, 8, 3, 16, 32
RATE = 1e-3
SETTINGS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": BATCH,
    "learning_rate": RATE,
    "schedule": "linear",
    "warmup_ratio": 0.0,
}


def rows(file: Path) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for n in range(ROWS):
        said = " ".join(f"word{(n * k) % 97}" for k in range(1, 8 + n % 24))
        asked = {"role": "user", "content": f"Say the words of list {n}."}
        made.append({"messages": [asked, {"role": "assistant", "content": said}]})
    file.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return made


def by_session(file: Path, folder: Path) -> dict[str, float]:
    from orchestrate.sessions import recipes

    env = {**os.environ, "ORCHESTRATE_HOME": str(folder / "home")}
    lora = {"rank": RANK, "seed": 1, "train_unembed": False}
    options = {"threads": 1, "precision": "fp32"}
    with (
        Orchestrator(config.load(env=env, cwd=folder)) as ft,
        ft.session(str(TINY), lora=lora, options=options) as s,
    ):
        recipes.sft(s, file, **SETTINGS, max_steps=1)  # encodes, and makes buffers
        began = Meter.now()
        recipes.sft(s, file, **SETTINGS)
        return began.took()


def by_job(file: Path, folder: Path) -> dict[str, float]:
    from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Supervised
    from orchestrate.local.run import RunDir, now
    from orchestrate.local.run.session import Session

    job = LocalJob(
        ref="job",
        model=str(TINY),
        model_name="tiny",
        train=str(file),
        method=Supervised(),
        adapter=AdapterSettings(type="lora", r=RANK, alpha=float(ALPHA)),
        hyper=Hyper(**SETTINGS),
        seed=1,
        threads=1,
        precision="fp32",
        created_at=now(),
    )
    run, _ = RunDir.make(folder / "runs", job)
    session = Session(run, job, lambda: None, lambda _: None)
    began = Meter.now()
    session.loop.run()
    return began.took()


def by_trl(file: Path, folder: Path) -> dict[str, float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(1)
    given = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32),
        args=SFTConfig(
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            lr_scheduler_type="linear",
            warmup_steps=0,
            assistant_only_loss=True,
            use_cpu=True,
            bf16=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            seed=1,
            output_dir=str(folder / "trl"),
        ),
        train_dataset=Dataset.from_list(given),
        processing_class=AutoTokenizer.from_pretrained(TINY),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    began = Meter.now()
    trainer.train()
    return began.took()


CONTENDERS: dict[str, Callable[[Path, Path], dict[str, float]]] = {
    "recipe over a session": by_session,
    "job on this machine": by_job,
    "TRL SFTTrainer": by_trl,
}


def measured(rounds: int) -> dict[str, Any]:
    from orchestrate.data import Dataset

    told, began = about("torch", "transformers", "peft", "trl"), Meter.now()
    least: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as home:
        file = Path(home) / "rows.jsonl"
        rows(file)
        tokens = Dataset.open(file).tokens(f"hf:{TINY}").tokens
        for n in range(rounds):
            for name, train in CONTENDERS.items():
                folder = Path(home) / f"{n}-{train.__name__}"
                folder.mkdir()
                took = train(file, folder)
                if name not in least or took["cpu"] < least[name]["cpu"]:
                    least[name] = took
                print(f"{name}: {tokens / took['cpu']:,.0f} tokens per CPU second", flush=True)
    return {
        **told,
        "others": began.others(),
        "rows": ROWS,
        "tokens": tokens,
        "steps": ROWS // BATCH,
        "took": least,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    figures = measured(args.rounds)
    if args.json:
        write(args.json, figures)


if __name__ == "__main__":
    main()
