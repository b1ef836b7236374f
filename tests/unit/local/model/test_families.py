"""Each architecture, with each of the engine's ways to lay out rows, against a plain loop of transformers,
peft and torch, row by row: the losses and the weights after some steps are the same to rounding.

The table is slow; a run with ORCHESTRATE_FAMILIES=FILE has all pairs and keeps their record there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
import torch
import torch.nn.functional as F
from tests.unit.local.families import FAMILIES, FURTHER, SEEING, make
from tests.unit.local.sessions import make_session
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from orchestrate.local.encoding.encoded import NEAR
from orchestrate.local.model.loader import keep_four_bit_weights
from orchestrate.local.model.weights import held_of
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
Weights = dict[str, torch.Tensor]
BATCH = 6
STEPS = 3
EXPERTS = ("experts.gate_up_proj", "experts.up_proj", "experts.down_proj")
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"type": "lora"},
    "full": {"type": "full"},
    "qlora": {"type": "qlora"},
    "experts": {"type": "lora", "target_parameters": EXPERTS},
    "experts in 4 bits": {"type": "qlora", "target_parameters": EXPERTS},
}
MIXTURES = {
    "deepseek_v3", "glm4_moe", "gpt_oss", "granitemoehybrid", "jamba", "llama4_text", "mixtral", "nemotron_h",
    "olmoe", "qwen3_moe", "qwen3_next",
    "afmoe", "deepseek_v2", "deepseek_v32", "ernie4_5_moe", "exaone_moe", "flex_olmo", "glm4_moe_lite",
    "glm_moe_dsa", "granitemoe", "hunyuan_v1_moe", "hy_v3", "lfm2_moe", "minimax_m2",
    "qwen3_5_moe_text", "solar_open",
}  # fmt: skip
APART = {"llama4_text"}
"""Mixtures whose experts transformers computes in a way of their own: they stay in 16 bits."""
LOSS, WEIGHTS = 1e-5, 1e-3
"""Relative distances that rounding in 32 bits explains: of a loss, and of the weights over how far they went.
Where both were seen, they were 1e-7 and 5e-5; a token of another row in sight makes them 1e-3 and 1e-1."""
FAST = {
    ("llama", "lora", "packing"),
    ("qwen3_moe", "experts in 4 bits", "line"),
    ("qwen3_next", "full", "packing"),
}
ALWAYS = {("lora", "line"), ("full", "packing"), ("qlora", "line")}
USUAL = ALWAYS | {(adapter, "line") for adapter in ADAPTERS if "experts" in adapter}
"""Each adapter; all pairs with the ways are in the record."""
PADDED = ("lora", "plain")
"""Rows padded as the libraries do it: of each family that is not packed, and of a few that are."""
RECORD = os.environ.get("ORCHESTRATE_FAMILIES")
TOGETHER = {
    "apertus", "arcee", "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "gemma2",
    "gemma3", "gemma3_text", "glm4", "glm4_moe", "gpt2", "gpt_neox", "granite", "llama", "llama4_text",
    "llava", "mistral", "mixtral", "nemotron", "olmo2", "olmoe", "phi3", "qwen2", "qwen3", "qwen3_moe",
    "seed_oss", "smollm3", "stablelm", "starcoder2",
    *FURTHER.keys() - {"afmoe", "lfm2_moe", "qwen3_5_moe_text"},
}  # fmt: skip
"""Families whose rows transformers keeps apart in a packed line."""
PADDED_TOO = {"gemma2", "gpt2", "llama", "mixtral"}


class Way(NamedTuple):
    """How rows are laid out. `line`: in our attention's line where a model bears it; `packing`: without
    that line, so that rows are packed where a model bears it; `plain`: the libraries' own, padded."""

    engine: str | None
    packing: bool
    line: bool


WAYS = {
    "line": Way(None, False, True),
    "packing": Way(None, True, False),
    "plain": Way("plain", False, False),
}


def ways_of(family: str) -> set[tuple[str, str]]:
    padded = family not in FURTHER and (family in PADDED_TOO or family not in TOGETHER)
    return (ALWAYS if family in FURTHER else USUAL) | ({PADDED} if padded else set())


def cells() -> Iterator[Any]:
    for family in FAMILIES:
        for adapter in ADAPTERS:
            if "experts" in adapter and family not in MIXTURES:
                continue
            for way in WAYS if adapter in ("lora", "full") else ("line",):
                cell = (family, adapter, way)
                if RECORD is None and cell not in FAST and (adapter, way) not in ways_of(family):
                    continue
                yield pytest.param(*cell, marks=() if cell in FAST else pytest.mark.slow, id="-".join(cell))


def rate(adapter: str) -> float:
    return 1e-3 if adapter == "full" else 1e-2


def chats(path: Path, count: int) -> Path:
    with path.open("w", encoding="utf-8") as out:
        for i in range(count):
            said = ("yes" if i % 2 == 0 else "no, it is odd") + " indeed" * (i % 3)
            messages = [
                {"role": "user", "content": f"Is {i} even?" + " Think well." * (i % 4)},
                {"role": "assistant", "content": said},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def base(folder: Path, session: Session) -> Any:
    """As transformers has it; in 4 bits the experts have the values that these stand for."""
    import bitsandbytes.functional as bnb

    four_bit = session.job.adapter.type == "qlora"
    kept = [n for n, m in session.loaded.inner.named_modules() if type(m) is torch.nn.Linear]
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        llm_int8_skip_modules=[n.removesuffix(".base_layer") for n in kept if ".lora_" not in n],
    )
    loader: Any = AutoModelForImageTextToText if folder.name in SEEING else AutoModelForCausalLM
    model: Any = loader.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        quantization_config=nf4 if four_bit else None,
    )
    if four_bit:
        keep_four_bit_weights(model)
        for name, weight in model.named_parameters():
            if weight.ndim == 3 and "experts." in name and folder.name not in APART:
                for expert in weight.data:
                    packed = bnb.quantize_4bit(
                        expert.contiguous(), quant_type="nf4", compress_statistics=True
                    )
                    expert.copy_(bnb.dequantize_4bit(*packed))
    return model


def plain_loop(
    folder: Path, session: Session, start: Weights, batches: list[list[int]]
) -> tuple[list[float], Weights]:
    """Losses, and the weights after the last step."""
    adapter = session.job.adapter
    model = base(folder, session)
    if not adapter.full:
        from peft import get_peft_model

        model = get_peft_model(model, session.loaded.model.peft_config["default"])
    parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert parameters.keys() == start.keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[name])
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=rate(adapter.type), weight_decay=0.0)
    model.train()
    losses: list[float] = []
    for batch in batches:
        rows = [session.loop.train.row(i) for i in batch]
        total, summed = sum(float(weights[1:].sum()) for _, weights in rows), 0.0
        for ids, weights in rows:
            row = torch.from_numpy(ids.astype("int64"))
            logits = model(input_ids=row[None], use_cache=False).logits[0, :-1]
            each = F.cross_entropy(logits, row[1:], reduction="none")
            loss = (each * torch.from_numpy(weights[1:].copy())).sum()
            (loss / total).backward()
            summed += loss.item()
        torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(summed / total)
    return losses, {n: p.detach() for n, p in parameters.items()}


class Made:
    """A family's model, and what plain loops over it came to: the same for each way to lay out rows."""

    def __init__(self, family: str, folder: Path) -> None:
        self.folder = make(family, folder / family)
        self._loops: dict[str, tuple[Weights, tuple[list[float], Weights]]] = {}

    def plain_loop(self, adapter: str, session: Session, start: Weights) -> tuple[list[float], Weights]:
        begun, found = self._loops.get(adapter, ({}, ([], {})))
        if begun.keys() != start.keys() or not all(torch.equal(start[n], begun[n]) for n in start):
            batches = session.loop.train.batches(BATCH, 0, 0)
            self._loops[adapter] = start, (found := plain_loop(self.folder, session, start, list(batches)))
        return found


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Cells come family by family: the last one made is held."""
    return lru_cache(maxsize=1)(lambda family: Made(family, tmp_path_factory.mktemp(family)))


@pytest.mark.parametrize(("family", "adapter", "way"), list(cells()))
def test_training_is_that_of_a_plain_loop(
    tmp_path: Path,
    families: Callable[[str], Made],
    record: dict[str, Any],
    family: str,
    adapter: str,
    way: str,
) -> None:
    made = families(family)
    folder = made.folder
    chosen, kind = WAYS[way], ADAPTERS[adapter]
    if names := kind.get("target_parameters"):
        gated = family != "nemotron_h"
        kind = {**kind, "target_parameters": [n for n in names if ("gate" in n) == gated or "down" in n]}
    session = make_session(
        tmp_path,
        chats(tmp_path / "t.jsonl", STEPS * BATCH),
        method={"type": "sft"},
        adapter=kind,
        model=str(folder),
        engine=chosen.engine,
        precision=None if adapter == "full" else "fp32",
        hyper={
            "epochs": 1,
            "batch_size": BATCH,
            "learning_rate": rate(kind["type"]),
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "packing": chosen.packing,
        },
    )
    loaded = session.loaded
    line = loaded.line_limit
    if not chosen.line:
        loaded.line_limit = 0
    session.loop.objective.packing = chosen.packing  # as on a GPU
    session.loop.progress = msgspec.structs.replace(session.loop.progress, window=NEAR)  # each way alike
    start = {n: p.detach().clone() for n, p in session.loop.parameters.items()}
    session.loop.restore()
    session.loop.run()
    ours = [p.values["train_loss"] for p in session.run.metrics()]
    theirs, weights = made.plain_loop(adapter, session, start)
    loss = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    went = sum((weights[n] - start[n]).norm().item() ** 2 for n in weights) ** 0.5
    apart = sum((p.detach() - weights[n]).norm().item() ** 2 for n, p in session.loop.parameters.items())
    assert len(ours) == STEPS
    assert loss < LOSS and apart**0.5 / went < WEIGHTS
    if chosen.packing:
        assert loaded.packs == (family in TOGETHER)
        told = [e.message for e in session.run.events() if not e.message.startswith("engine ")]
        assert any("packing" in message for message in told) == (not loaded.packs)
    if "experts" in adapter:
        assert any("experts" in name for name in start)
    if kind["type"] == "qlora":
        assert any(held_of(loaded.inner)) == (family in MIXTURES - APART)
    record.setdefault(family, {})[f"{adapter}, {way}"] = {
        "loss": loss,
        "weights": apart**0.5 / went,
        "line": line,
        "packs": loaded.packs if chosen.packing else None,
        "left_out": loaded.left_out,
        "without_adapter": list(loaded.without_adapter),
    }


@pytest.fixture(scope="module")
def record() -> Iterator[dict[str, Any]]:
    found: dict[str, Any] = {}
    yield found
    if RECORD:
        Path(RECORD).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
