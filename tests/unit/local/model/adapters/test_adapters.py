"""Adapters against a plain loop over peft's own model of the same configuration: what is adapted, how it
begins, what it learns, and what is written."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cells import diagonal
from tests.paths import TINY
from tests.unit.local.sessions import make_session

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local.model.adapters.starts import eva_batches
from orchestrate.local.model.loader import add_adapter, load_adapter
from orchestrate.local.run.session import Session

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]
SLOW = pytest.mark.slow
LORA = {"type": "lora", "r": 8, "alpha": 16.0}
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    chance = random.Random(0)
    words = ["red", "green", "blue", "round", "square", "large", "small", "old", "new", "fast"]
    with path.open("w", encoding="utf-8") as out:
        for _ in range(24):
            said = " ".join(chance.choices(words, k=chance.randint(3, 12)))
            messages = [
                {"role": "user", "content": f"Say it backwards: {said}"},
                {"role": "assistant", "content": " ".join(said.split()[::-1])},
            ]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def session(home: Path, rows: Path, adapter: dict[str, Any], **job: Any) -> Session:
    """In 32 bits, so that a plain loop has nothing but its own rounding to differ by."""
    job = {"precision": "fp32", "ref": "run", **job}
    hyper = {"epochs": 1, "learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0}
    hyper |= job.pop("hyper", {})
    return make_session(home, rows, method={"type": "sft"}, adapter={**LORA, **adapter}, hyper=hyper, **job)


def base() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)


def pefts(**config: Any) -> Any:
    """peft's own, made as its documentation has it."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    given = {"r": 8, "lora_alpha": 16.0, "target_modules": EVERY, "task_type": "CAUSAL_LM"}
    return get_peft_model(base(), LoraConfig(**{**given, **config}))


def padded(made: Session, batch: list[int]) -> dict[str, torch.Tensor]:
    parts = [made.loop.train.row(i) for i in batch]
    width = max(len(ids) for ids, _ in parts)
    ids = torch.zeros(len(parts), width, dtype=torch.long)
    labels = torch.full((len(parts), width), -100)
    mask = torch.zeros(len(parts), width, dtype=torch.long)
    for r, (row, weights) in enumerate(parts):
        ids[r, : len(row)] = torch.tensor(row.astype(int))
        mask[r, : len(row)] = 1
        labels[r, : len(row)] = torch.where(torch.tensor(weights) > 0, ids[r, : len(row)], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def plain_loop(made: Session, model: Any) -> list[float]:
    """transformers' own loss and torch's AdamW over the same batches."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    losses: list[float] = []
    for batch in made.loop.train.batches(8, made.job.seed, 0, made.loop.progress.window):
        loss = model(**padded(made, list(batch)), use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def start_alike(made: Session, model: Any) -> None:
    """Chance draws otherwise in each."""
    there = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in made.loaded.trainable.items():
            there[name].copy_(parameter)


def logits_of(model: Any, made: Session) -> torch.Tensor:
    batch = padded(made, list(range(4)))
    model.eval()
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return out[batch["attention_mask"].bool()]


def planned(made: Session) -> None:
    """The memory plan counts what is trained."""
    trained = sum(p.numel() for p in made.loaded.trainable.values())
    assert made.memory_plan is not None and made.memory_plan.parts["optimizer"] == 8 * trained


def same_training(made: Session, model: Any) -> None:
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(made.loaded.trainable) == wanted
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    losses = plain_loop(made, model)
    made.loop.restore()
    made.loop.run()
    assert [p.values["train_loss"] for p in made.run.metrics()] == pytest.approx(losses, rel=2e-4)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            moved = (parameter - before[name]).norm()
            apart = (made.loaded.trainable[name] - parameter).norm()
            assert moved > 0 and apart < 0.02 * moved, (name, apart, moved)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "config"),
    [
        (
            {"rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"q_proj": 32.0}},
            {"rank_pattern": {"q_proj": 4, r"layers\.1\.mlp\.up_proj": 2}, "alpha_pattern": {"q_proj": 32.0}},
        ),
        pytest.param({"layers_to_transform": (0, 2)}, {"layers_to_transform": [0, 2]}, marks=SLOW),
        (
            {"targets": ("q_proj", "up_proj"), "layers_to_transform": (1,)},
            {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
        ),
        (
            {"exclude_modules": ("v_proj", "layers.0.mlp.up_proj")},
            {"exclude_modules": ["v_proj", "layers.0.mlp.up_proj"]},
        ),
        pytest.param(
            {"exclude_modules": r".*layers\.[12]\..*"}, {"exclude_modules": r".*layers\.[12]\..*"}, marks=SLOW
        ),
        ({"init_lora_weights": "gaussian"}, {"init_lora_weights": "gaussian"}),
        pytest.param({"init_lora_weights": "orthogonal"}, {"init_lora_weights": "orthogonal"}, marks=SLOW),
        (
            {"modules_to_save": ("embed_tokens",), "targets": ("q_proj",)},
            {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"], "ensure_weight_tying": True},
        ),
        pytest.param(
            {"modules_to_save": ("layers.1.mlp.down_proj", "norm")},
            {"modules_to_save": ["layers.1.mlp.down_proj", "norm"]},
            marks=SLOW,
        ),
    ],
    ids=lambda v: "-".join(v) if "type" not in v else None,
)  # fmt: skip
def test_it_is_pefts_in_a_plain_loop(
    tmp_path: Path, rows: Path, adapter: dict[str, Any], config: dict[str, Any]
) -> None:
    made, model = session(tmp_path, rows, adapter), pefts(**config)
    if start := adapter.get("init_lora_weights"):
        spread = {"gaussian": 1 / 8, "orthogonal": 0.1}[start]
        for one in (made.loaded.model, model):
            a = torch.cat([p.detach().flatten() for n, p in one.named_parameters() if "lora_A" in n])
            assert a.std().item() == pytest.approx(
                spread * (1 if start == "gaussian" else math.sqrt(0.5)), rel=0.1
            )
    start_alike(made, model)
    planned(made)
    same_training(made, model)
    folder = made.publish()
    again = load_adapter(base(), folder)
    assert torch.allclose(logits_of(again, made), logits_of(model, made), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "start"), diagonal(["lora", "rslora"], ["pissa", "pissa_niter_4", "olora"]))
def test_a_start_out_of_the_base_is_pefts_and_is_given_back(
    tmp_path: Path, rows: Path, start: str, kind: str
) -> None:
    """What is written is for the base as it is, of twice the rank, as peft converts it."""
    rslora = kind == "rslora"
    adapter = {"init_lora_weights": start, "rslora": rslora, "targets": ("q_proj", "up_proj")}
    pattern = {} if rslora else {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 5.0}}
    made = session(tmp_path, rows, {**adapter, **pattern})
    config = {"use_rslora": rslora, "target_modules": ["q_proj", "up_proj"], **pattern}
    model = pefts(init_lora_weights=start, **config)
    if start == "pissa_niter_4":
        start_alike(made, model)  # its directions are drawn
        for name, module in made.loaded.inner.named_modules():
            if hasattr(module, "lora_A"):
                model.get_base_model().get_submodule(
                    name
                ).base_layer.weight.data = module.base_layer.weight.data.clone()
    for name, parameter in model.named_parameters():
        mine = dict(made.loaded.model.named_parameters())[name]
        assert torch.allclose(mine, parameter, atol=1e-6), name
    untouched = logits_of(base(), made)
    assert torch.allclose(logits_of(made.loaded.model, made), untouched, atol=1e-3)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    model.peft_config["default"].init_lora_weights = start
    same_training(made, model)
    folder = made.publish()
    tuned = logits_of(model, made)
    assert torch.allclose(logits_of(load_adapter(base(), folder), made), tuned, atol=2e-3)
    assert not torch.allclose(tuned, untouched, atol=0.05)
    start_alike(made, model)
    model.save_pretrained(
        tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first")
    )
    theirs = load_file(tmp_path / "converted" / "adapter_model.safetensors")
    ours = load_file(folder / "adapter_model.safetensors")
    assert theirs.keys() == ours.keys()
    for name, value in theirs.items():
        assert torch.allclose(ours[name], value, atol=1e-5), name
    configs = [json.loads((f / "adapter_config.json").read_bytes()) for f in (tmp_path / "converted", folder)]
    for field in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "init_lora_weights"):
        assert configs[0][field] == pytest.approx(configs[1][field]), field


@pytest.mark.slow
def test_eva_is_pefts(tmp_path: Path, rows: Path) -> None:
    """Its directions, its ranks, and the scales that go with them, of the same batches."""
    from peft import EvaConfig, LoraConfig, get_peft_model
    from peft.tuners.lora.eva import initialize_lora_eva_weights

    made = session(tmp_path, rows, {"init_lora_weights": "eva", "r": 4})
    config = LoraConfig(
        r=4,
        lora_alpha=16.0,
        target_modules=EVERY,
        init_lora_weights="eva",
        eva_config=EvaConfig(),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(base(), config)
    batches = eva_batches(made.loop.train, 8, made.job.seed, torch.device("cpu"))
    assert len(batches) >= 1 and all((batch["labels"] >= 0).sum() >= 8 for batch in batches)
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    ranks = {p.shape[0] for n, p in model.named_parameters() if "lora_A" in n}
    assert len(ranks) > 1
    ours = dict(made.loaded.model.named_parameters())
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            # A direction has no sign.
            cosines = torch.nn.functional.cosine_similarity(ours[name], parameter).abs()
            assert cosines.min() > 0.999, name
    start_alike(made, model)
    same_training(made, model)
    again = load_adapter(base(), made.publish())
    assert torch.allclose(logits_of(again, made), logits_of(model, made), atol=2e-3)


@pytest.mark.slow
def test_weights_in_four_bits_count_as_what_they_are(tmp_path: Path, rows: Path) -> None:
    packed = session(tmp_path, rows, {"type": "qlora"})
    plain = session(tmp_path, rows, {"type": "lora"}, ref="plain")
    share = packed.summary.partition("trainable parameters (")[2].partition(")")[0]
    assert packed.loaded.parameters == plain.loaded.parameters and share in plain.summary


@pytest.mark.slow
def test_loftq_makes_up_for_what_4_bits_lose_as_well_as_its_rank_can(tmp_path: Path, rows: Path) -> None:
    """By the theorem of Eckart and Young: what is left is what the smaller singular values hold."""
    import bitsandbytes.functional as bnb

    made = session(tmp_path, rows, {"type": "qlora", "init_lora_weights": "loftq"})
    plain = session(tmp_path, rows, {"type": "qlora"}, ref="plain")
    stored = {name: p.detach() for name, p in base().named_parameters()}
    layers = [(n, m) for n, m in made.loaded.inner.named_modules() if hasattr(m, "lora_A")]
    assert len(layers) == 21
    for name, layer in layers:
        held = bnb.dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state).float()
        lost = stored[f"{name}.weight"].to(torch.bfloat16).float() - held
        added = layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        still = (lost - added).norm().item()
        left = torch.linalg.svdvals(lost)[8:].square().sum().sqrt()
        assert still == pytest.approx(left.item(), rel=1e-3) and still < 0.98 * lost.norm()
    full = logits_of(base(), made)
    assert (logits_of(made.loaded.model, made) - full).norm() < (
        logits_of(plain.loaded.model, plain) - full
    ).norm()


@pytest.mark.slow
@pytest.mark.parametrize("start", ["pissa_niter_4", pytest.param("eva", marks=SLOW)])
def test_a_run_that_goes_on_begins_with_the_same(tmp_path: Path, rows: Path, start: str) -> None:
    import shutil

    def make() -> Session:
        adapter = {"init_lora_weights": start, "dropout": 0.1}
        return session(tmp_path, rows, adapter, precision=None, hyper={"checkpoint_steps": 1})

    whole = make()
    whole.loop.restore()
    whole.loop.run()
    curve = [p.values["train_loss"] for p in whole.run.metrics()]
    weights = {n: p.detach().clone() for n, p in whole.loaded.trainable.items()}
    for kept in sorted(whole.run.checkpoints.iterdir())[1:]:
        shutil.rmtree(kept)
    again = make()
    again.loop.restore()
    assert again.loop.progress.step == 1
    again.loop.run()
    assert [p.values["train_loss"] for p in again.run.metrics()] == curve
    for name, value in weights.items():
        assert torch.equal(value, again.loaded.trainable[name]), name


def test_names_that_fit_nothing_are_told(tmp_path: Path, rows: Path) -> None:
    made = session(tmp_path, rows, {"exclude_modules": ("nosuch", "v_proj"), "rank_pattern": {"q_prj": 4}})
    told = [e.message for e in made.run.events() if e.type == "adapter"]
    assert any("exclude_modules: no target matches nosuch" in line for line in told)
    assert any("rank_pattern: no target matches q_prj" in line for line in told) and not any(
        "v_proj" in line for line in told
    )
    with pytest.raises(RunFailed, match="no module nosuch to save"):
        session(tmp_path, rows, {"modules_to_save": ("nosuch",)}, ref="b")
    with pytest.raises(RunFailed, match="eva needs at least 16 trained tokens"):
        few = tmp_path / "few.jsonl"
        few.write_text(rows.read_text().splitlines()[0].replace("backwards", "b") + "\n")
        short = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
        few.write_text(json.dumps(short) + "\n")
        session(tmp_path, few, {"init_lora_weights": "eva"}, ref="c")


NEW = ("<|note|>", "<|end of note|>")


@pytest.fixture(scope="module")
def noted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose answers are marked by texts that become tokens."""
    path = tmp_path_factory.mktemp("noted") / "rows.jsonl"
    chance = random.Random(4)
    with path.open("w", encoding="utf-8") as out:
        for _ in range(16):
            said = " ".join(chance.choices(["red", "green", "blue"], k=3))
            answer = f"{NEW[0]}{said}{NEW[1]}"
            messages = [{"role": "user", "content": f"Note {said}"}, {"role": "assistant", "content": answer}]
            out.write(json.dumps({"messages": messages}) + "\n")
    return path


def untied(folder: Path) -> Path:
    """The tiny model with an output layer of its own, and with rows that no token has."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    if not folder.exists():
        torch.manual_seed(1)
        config = AutoConfig.from_pretrained(TINY, local_files_only=True)
        config.tie_word_embeddings, config.vocab_size = False, 1281
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
        AutoTokenizer.from_pretrained(TINY, local_files_only=True).save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_added_tokens_are_pefts_trainable_tokens_in_a_plain_loop(
    tmp_path: Path, noted: Path, tied: bool
) -> None:
    """Their rows begin as the mean of the others, are trained with the adapter, and come back with it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = TINY if tied else untied(tmp_path / "untied")
    whole: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    known = whole.get_input_embeddings().weight.shape[0]
    made = session(tmp_path, noted, {}, model=str(folder), added_tokens=NEW)
    ids = made.tokenizer.convert_tokens_to_ids(list(NEW))
    assert ids == [1280, 1281] and known == (1280 if tied else 1281)
    spans = [made.tokenizer.decode(made.loop.train.row(i)[0]) for i in range(3)]
    assert all(NEW[0] in text for text in spans) and ids[0] in made.loop.train.row(0)[0]
    whole.resize_token_embeddings(1282, mean_resizing=False)
    for table in (whole.get_input_embeddings(), whole.get_output_embeddings()):
        with torch.no_grad():
            table.weight[ids] = table.weight[:1280].mean(0)
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=EVERY,
        trainable_token_indices={name: ids for name in names},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(whole, config)
    start_alike(made, model)
    for name, value in dict(made.loaded.model.named_parameters()).items():
        assert torch.allclose(value, dict(model.named_parameters())[name], atol=1e-6), name
    planned(made)
    same_training(made, model)
    result = made.publish()
    fresh: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    again = load_adapter(fresh, result)
    assert torch.allclose(logits_of(again, made), logits_of(model, made), atol=2e-3)
    own = AutoTokenizer.from_pretrained(result, local_files_only=True)
    assert own.convert_tokens_to_ids(list(NEW)) == ids
    assert json.loads((result / "passport.json").read_bytes())["added_tokens"] == list(NEW)
    merged = again.merge_and_unload()
    assert torch.allclose(logits_of(merged, made), logits_of(model, made), atol=2e-3)
    goes_on = session(tmp_path, noted, {}, model=str(folder), ref="on", continue_from=str(result))
    assert goes_on.tokenizer.convert_tokens_to_ids(list(NEW)) == ids
    assert set(goes_on.loaded.trainable) == set(made.loaded.trainable)
    for name, value in goes_on.loaded.trainable.items():
        assert torch.equal(value, made.loaded.trainable[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "qlora"])
def test_added_tokens_in_other_trainings(tmp_path: Path, noted: Path, kind: str) -> None:
    """All weights, saved whole; and in 16 bits over a base in 4, where the rows are trained in 32 all the
    same."""
    precision = None if kind == "qlora" else "fp32"
    hyper = {"epochs": 4}
    made = session(tmp_path, noted, {"type": kind}, added_tokens=NEW, precision=precision, hyper=hyper)
    assert all(p.dtype == torch.float32 for p in made.loaded.trainable.values())
    made.loop.restore()
    made.loop.run()
    result = made.publish()
    losses = [p.values["train_loss"] for p in made.run.metrics()]
    assert losses[-1] < losses[0]
    if kind == "full":
        from transformers import AutoModelForCausalLM

        again: Any = AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32, local_files_only=True)
        assert again.get_input_embeddings().weight.shape[0] == again.config.vocab_size == 1282
        # Written in 16 bits, as its base is.
        assert (logits_of(again, made) - logits_of(made.loaded.inner, made)).abs().mean() < 0.05


def test_a_module_saved_whole_is_trained_in_32_bits_on_a_base_in_16(tmp_path: Path, rows: Path) -> None:
    """Where the model computes in bf16, its gradients are those of all 32 bits within bf16's rounding."""
    saved = {"modules_to_save": ("embed_tokens", "layers.1.mlp.down_proj", "norm"), "targets": ("q_proj",)}
    made = session(tmp_path, rows, saved, precision="bf16")
    exact = session(tmp_path, rows, saved, ref="exact")
    assert made.loaded.inner.dtype == torch.bfloat16
    for one in (made, exact):
        assert all(p.dtype == torch.float32 for p in one.loaded.trainable.values())
        one.loaded.model.train()
        one.loop.objective.gradients(one.loop.train, [0, 1, 2], 4096, 8)
    for name, parameter in made.loaded.trainable.items():
        wanted = exact.loaded.trainable[name].grad
        assert parameter.grad is not None and wanted is not None
        if wanted.norm() > 0:
            assert (parameter.grad - wanted).norm() < 0.1 * wanted.norm(), name


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda key, value: {key: value} if ".layers.1." not in key else {},
            "the adapter lacks a tensor of the right shape for",
        ),
        (
            lambda key, value: {key: value, key.replace(".layers.1.", ".layers.9."): value},
            "the model lacks a module for",
        ),
        (
            lambda key, value: {key: value[:, :-1] if "lora_A" in key else value},
            "the adapter lacks a tensor of the right shape for",
        ),
    ],
    ids=["layers-that-it-lacks", "layers-that-the-model-lacks", "wider"],
)
def test_an_adapter_of_another_model_is_refused_and_leaves_the_base(
    tmp_path: Path, change: Callable[[str, torch.Tensor], dict[str, torch.Tensor]], told: str
) -> None:
    """peft passes over tensors without a place, and leaves what a file lacks as chance made it."""
    pefts(target_modules=["q_proj", "v_proj"]).save_pretrained(tmp_path)
    whole = load_adapter(base(), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    changed = [change(key, value) for key, value in load_file(path).items()]
    save_file({k: v.clone() for part in changed for k, v in part.items()}, path, {"format": "pt"})
    plain = base()
    with pytest.raises(UsageError, match=f"does not fit its base model: .*{told}"):
        load_adapter(plain, tmp_path)
    assert not any("lora_" in name for name, _ in plain.named_parameters())
    with pytest.raises(UsageError, match=told):
        add_adapter(whole, tmp_path, "second")
    assert list(whole.peft_config) == ["default"]
