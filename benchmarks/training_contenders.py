"""Who trains in `training.py`: the engine, and what people would run instead, each with its best settings."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training_loads import LOADS, Load, Row, canonical

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
RATE, BETA = 1e-3, 0.1
AT_ONCE = 4096
"""Tokens in one pass, at most, where rows lie side by side: the engine's own limit on a CPU."""
IN_LINE = 1232
"""Tokens in one pass where rows lie one behind the other: attention looks at all of them."""
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Work:
    """What one process is to do."""

    load_name: str
    rows: int
    model: str
    folder: str
    out: str
    seed: int
    threads: int
    precision: str
    tokens: int
    """Of a conversation, the mean."""
    longest: int
    device: str = "cpu"

    @property
    def load(self) -> Load:
        return LOADS[self.load_name]

    @property
    def data(self) -> list[Row]:
        return self.load.train(self.rows)

    def json(self) -> str:
        return json.dumps(asdict(self))

    @property
    def own(self) -> Path:
        """A folder for nobody else."""
        found = Path(f"{self.out}-work")
        found.mkdir(exist_ok=True)
        return found

    def two_at_once(self) -> dict[str, int]:
        """Of rows of many lengths: little is padded."""
        return {"per_device_train_batch_size": 2, "gradient_accumulation_steps": self.load.batch // 2}

    def side_by_side(self) -> dict[str, int]:
        """Rows in a pass, and passes to a step."""
        rows = self.load.batch
        while rows > 1 and rows * self.longest * (2 if self.load.pairs else 1) > AT_ONCE:
            rows //= 2
        return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": self.load.batch // rows}

    def defaults(self) -> dict[str, int]:
        rows = min(8, self.load.batch)
        return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": self.load.batch // rows}

    def in_line(self) -> dict[str, int]:
        rows = self.load.batch
        while rows > 1 and rows * self.tokens > IN_LINE * 1.1:
            rows //= 2
        return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": self.load.batch // rows}

    def packed(self) -> dict[str, int]:
        """Lines with as many tokens to the step as its rows have on average."""
        width = max(IN_LINE, self.longest)
        lines = max(1, round(self.load.batch * self.tokens / width))
        return {"per_device_train_batch_size": 1, "gradient_accumulation_steps": lines, "max_length": width}


class Clock:
    """Times the training alone: libraries, loading and encoding are left out."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def __enter__(self) -> Clock:
        settled()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        settled()
        self.wall += time.perf_counter() - self._wall
        self.cpu += time.process_time() - self._cpu

    def told(self, steps: int) -> dict[str, Any]:
        return {"wall": self.wall, "cpu": self.cpu, "steps": steps}


def settled() -> None:
    """What was given to a GPU is done."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.synchronize()


Contender = Callable[[Work], dict[str, Any]]

# -- the engine ------------------------------------------------------------------------------------------


def engine(work: Work) -> dict[str, Any]:
    from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Preferences, Supervised
    from orchestrate.local.run import RunDir, importing, now

    with importing():
        from orchestrate.local.run.session import Session

    data, clock = work.own / "rows.jsonl", Clock()
    data.write_text(canonical(work.load, work.data), encoding="utf-8")
    hyper = Hyper(
        epochs=1, batch_size=work.load.batch, learning_rate=RATE, schedule="linear", warmup_ratio=0.0
    )
    job = LocalJob(
        ref="engine",
        model=work.model,
        model_name="random",
        train=str(data),
        method=Preferences(beta=BETA) if work.load.pairs else Supervised(),
        adapter=AdapterSettings(type="qlora", r=16, alpha=32.0),
        hyper=hyper,
        threads=work.threads,
        device=work.device,
        precision=work.precision,
        created_at=now(),
        seed=work.seed,
    )

    class Timed(Session):
        def _judged(self, *given: Any) -> Any:
            with clock:  # others ask the base within their steps
                return super()._judged(*given)

    run_dir, _ = RunDir.make(work.own / "runs", job)
    session = Timed(run_dir, job, lambda: None, lambda _: None)
    session.loop.restore()
    with clock:
        session.loop.run()
    session.loaded.model.save_pretrained(work.out)
    return clock.told(session.loop.progress.step)


def sorted_by_length(work: Work) -> dict[str, Any]:
    """As the engine does where rows are padded: like lengths meet in a step."""
    from orchestrate.local.encoding.encoded import NEAR, EncodedRows

    EncodedRows.window = lambda _self, _line: NEAR  # type: ignore[method-assign]
    return engine(work)


# -- the others ------------------------------------------------------------------------------------------


def base_model(work: Work) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = getattr(torch, DTYPES[work.precision])
    in_four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(
        work.model,
        dtype=dtype,
        quantization_config=in_four_bits,
        device_map={"": 0} if work.device == "cuda" else None,
    )


def common(work: Work) -> dict[str, Any]:
    return {
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "linear",
        "warmup_steps": 0,
        "use_cpu": work.device == "cpu",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 50,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch_fused",
        "bf16": work.precision == "bf16",
        "seed": work.seed,
        "output_dir": str(work.own),
    }


LIKE_LENGTHS = {"train_sampling_strategy": "group_by_length"}


def trained(trainer: Any, work: Work) -> dict[str, Any]:
    with Clock() as clock:
        trainer.train()
    trainer.model.save_pretrained(work.out)
    return clock.told(trainer.state.global_step)


def trl(options: Callable[[Work], dict[str, Any]]) -> Contender:
    def run(work: Work) -> dict[str, Any]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from trl import SFTConfig, SFTTrainer

        torch.set_num_threads(work.threads)
        trainer = SFTTrainer(
            model=base_model(work),
            args=SFTConfig(**{**common(work), **options(work)}),
            train_dataset=Dataset.from_list(work.data),
            processing_class=AutoTokenizer.from_pretrained(work.model),
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        )
        return trained(trainer, work)

    return run


def best(*more: Callable[[Work], dict[str, Any]], **fixed: Any) -> Contender:
    """TRL without what costs it time here."""
    settings = {"assistant_only_loss": True, "gradient_checkpointing": False, "max_length": None, **fixed}

    def options(work: Work) -> dict[str, Any]:
        found = dict(settings)
        for one in more:
            found |= one(work)
        return found

    return trl(options)


def trl_dpo(
    at_once: Callable[[Work], dict[str, int]], *, sorted_rows: bool = False, **options: Any
) -> Contender:
    def run(work: Work) -> dict[str, Any]:
        import torch
        from datasets import Dataset
        from peft import LoraConfig
        from transformers import AutoTokenizer
        from transformers.trainer_pt_utils import LengthGroupedSampler
        from trl import DPOConfig, DPOTrainer

        torch.set_num_threads(work.threads)
        pairs = [
            {"prompt": r["messages"][:-1], "chosen": r["messages"][-1:], "rejected": [r["rejected"]]}
            for r in work.data
        ]
        settings = {**common(work), "beta": BETA, "max_length": None, **at_once(work), **options}

        class LikeLengths(DPOTrainer):
            """The trainer's own sampler, which does not know the lengths of pairs."""

            def _get_train_sampler(self, train_dataset: Any = None) -> Any:
                lengths = [
                    len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                    for row in self.train_dataset
                ]
                return LengthGroupedSampler(work.load.batch, lengths=lengths)

        trainer = (LikeLengths if sorted_rows else DPOTrainer)(
            model=base_model(work),
            args=DPOConfig(**settings),
            train_dataset=Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(work.model),
            peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM"),
        )
        return trained(trainer, work)

    return run


def peft_trainer(at_once: Callable[[Work], dict[str, int]]) -> Contender:
    return lambda work: _peft_trainer(work, at_once(work))


def _peft_trainer(work: Work, at_once: dict[str, int]) -> dict[str, Any]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(work.threads)
    tokenizer = AutoTokenizer.from_pretrained(work.model)
    data: list[dict[str, Any]] = []
    for row in work.data:
        out = tokenizer.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        labels = [i if m else -100 for i, m in zip(out["input_ids"], out["assistant_masks"], strict=True)]
        data.append(
            {"input_ids": out["input_ids"], "attention_mask": out["attention_mask"], "labels": labels}
        )
    trainer = Trainer(
        model=get_peft_model(base_model(work), LoraConfig(**LORA, task_type="CAUSAL_LM")),
        args=TrainingArguments(**common(work), **at_once, **LIKE_LENGTHS),
        train_dataset=data,
        data_collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100),
    )
    return trained(trainer, work)


STUB_AUDIO = "__version__ = '0'\n"


def llama_factory(work: Work) -> dict[str, Any]:
    """In an environment of its own; a stub stands for torchaudio, which it imports and SFT does not use."""
    stub = work.own / "stub" / "torchaudio"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(STUB_AUDIO)
    sys.path.insert(0, str(stub.parent))
    import torch
    from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]
    from transformers import TrainerCallback

    torch.set_num_threads(work.threads)
    (work.own / "rows.json").write_text(json.dumps(work.data), encoding="utf-8")
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {
        "file_name": "rows.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {**tags, "system_tag": "system"},
    }
    (work.own / "dataset_info.json").write_text(json.dumps({"rows": about}), encoding="utf-8")
    clock, steps = Clock(), [0]

    class Timed(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            clock.__enter__()

        def on_train_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
            clock.__exit__()
            steps[0] = state.global_step

    run_exp(
        {
            **{k: v for k, v in common(work).items() if k != "logging_steps"},
            **work.side_by_side(),
            "stage": "sft",
            "do_train": True,
            "model_name_or_path": work.model,
            "dataset": "rows",
            "dataset_dir": str(work.own),
            "template": "chatml",
            "finetuning_type": "lora",
            "lora_rank": LORA["r"],
            "lora_alpha": LORA["lora_alpha"],
            "lora_target": "all",
            "quantization_bit": 4,
            "quantization_method": "bnb",
            "cutoff_len": 4096,
            "output_dir": work.out,
            "overwrite_output_dir": True,
        },
        [Timed()],
    )
    return clock.told(steps[0])


OWN: dict[str, Contender] = {"engine": engine, "engine, like lengths together": sorted_by_length}
RIVAL = "TRL, like lengths together"
"""With all seeds, as the engine: whose held-out loss is to be equalled."""
LLAMA_FACTORY = "LLaMA-Factory"
OTHERS: dict[str, Contender] = {
    "TRL, defaults": trl(Work.defaults),
    RIVAL: best(Work.side_by_side, **LIKE_LENGTHS),
    "TRL, packed": best(Work.packed, packing=True),
    "TRL, padding-free": best(Work.in_line, padding_free=True),
    "peft and Trainer": peft_trainer(Work.side_by_side),
    LLAMA_FACTORY: llama_factory,
}
WHERE_LENGTHS_VARY: dict[str, Contender] = {
    "TRL, like lengths, 2 rows a pass": best(Work.two_at_once, **LIKE_LENGTHS),
    "peft and Trainer, 2 rows a pass": peft_trainer(Work.two_at_once),
}
OTHERS_IN_PAIRS: dict[str, Contender] = {
    "TRL, defaults": trl_dpo(Work.defaults),
    RIVAL: trl_dpo(Work.side_by_side, sorted_rows=True, gradient_checkpointing=False),
}


def contenders_for(load: Load) -> dict[str, Contender]:
    varied = WHERE_LENGTHS_VARY if load.varied else {}
    return {**OWN, **(OTHERS_IN_PAIRS if load.pairs else {**OTHERS, **varied})}


def run(name: str, work: Work) -> dict[str, Any]:
    result = contenders_for(work.load)[name](work)
    return {**result, "peak_mb": peak_mb() if work.device == "cpu" else gpu_peak_mb()}


def gpu_peak_mb() -> float:
    import torch

    return torch.cuda.max_memory_allocated() / 2**20


def peak_mb() -> float:
    """Of this process alone: what `getrusage` tells counts what started it too."""
    try:
        with Path("/proc/self/status").open(encoding="utf-8") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- judging ---------------------------------------------------------------------------------------------


def judge(work: Work, adapters: list[str]) -> list[float]:
    """Held-out loss of each adapter, by one code: on the assistant's tokens, of pairs DPO's."""
    import torch
    from peft import PeftModel

    from orchestrate.local.encoding import Template
    from orchestrate.local.encoding.encoded import EncodedRows, encode_file
    from orchestrate.local.job import Preferences
    from orchestrate.local.model.loaded import Loaded, OutputHead
    from orchestrate.local.model.loader import load_base, load_tokenizer
    from orchestrate.local.objectives.base import Objective
    from orchestrate.local.objectives.dpo import PairObjective, preference_of, with_reference

    torch.set_num_threads(work.threads)
    pairs, place = work.load.pairs, work.own
    path = place / "held-out.jsonl"
    path.write_text(canonical(work.load, work.load.held_out()), encoding="utf-8")
    template = Template(load_tokenizer(Path(work.model)))
    rows, _ = encode_file(path, template, place / "held-out", pairs=pairs)

    def objective(model: Any, inner: Any) -> Objective:
        loaded = Loaded(model, inner, OutputHead.of(inner), torch.device("cpu"))
        return (
            PairObjective(loaded, 0, preference_of(Preferences(beta=BETA))) if pairs else Objective(loaded, 0)
        )

    def loaded_base() -> Any:
        return load_base(Path(work.model), four_bit=True, device=torch.device("cpu"))

    def judged_by_base(rows: EncodedRows) -> EncodedRows:
        base = loaded_base()
        asked = objective(base, base)
        assert isinstance(asked, PairObjective)
        return with_reference(asked, rows, place / "held-out", AT_ONCE, lambda: None)

    rows = judged_by_base(rows) if pairs else rows
    found: list[float] = []
    for folder in adapters:
        inner = loaded_base()
        model = PeftModel.from_pretrained(inner, folder)
        found.append(objective(model, inner).evaluate(rows, AT_ONCE)["valid_loss"])
    return found
