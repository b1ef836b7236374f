"""The quick pass of Llama-shaped models, against the pass of transformers and PEFT."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.unit.local.families import make
from transformers import AutoModelForCausalLM

from orchestrate.local.model.sampling import SamplingSettings, quick_pass
from orchestrate.local.model.sampling.batching import BASE, Batching, DecodingRow, Mixing
from orchestrate.local.model.sampling.quick_pass import quick_of, quicken

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
PROMPTS = [[5, 6, 7, 8], [9, 10, 11] * 3, [12] * 7, [13, 14], [21, 22, 23, 9, 4]]


def loaded(family: str, folder: Path, **more: Any) -> Any:
    kind: Any = AutoModelForCausalLM
    more |= {"sliding_window": None} if family == "mistral" else {}
    path = folder if (folder / "config.json").is_file() else make(family, folder, **more)
    return kind.from_pretrained(path, dtype=torch.float32).eval()


def loaded_with_window(folder: Path) -> Any:
    kind: Any = AutoModelForCausalLM
    return kind.from_pretrained(make("mistral", folder), dtype=torch.float32).eval()


def adapted(model: Any) -> Any:
    """With two adapters: one on all layers, one on few of them whose ranks differ."""
    torch.manual_seed(3)
    shape: dict[str, Any] = {"task_type": "CAUSAL_LM", "init_lora_weights": False}
    every = LoraConfig(r=8, target_modules="all-linear", **shape)
    found: Any = get_peft_model(model, every, adapter_name="wide")
    found.add_adapter(
        "few", LoraConfig(r=4, target_modules=["k_proj", "up_proj"], rank_pattern={"k_proj": 2}, **shape)
    )
    return found.eval()


def drawn(model: Any, adapters: list[str]) -> list[list[int]]:
    """All rows at once; the last ones join later."""
    batching = Batching(model, most_rows=4)
    batching.use(model)
    rows = [
        DecodingRow(str(n), adapters[n % len(adapters)], list(prompt), SamplingSettings(), 6 + n)
        for n, prompt in enumerate(PROMPTS)
    ]
    batching.waiting += rows
    with torch.inference_mode():
        while not batching.idle:
            list(batching.step())
    batching.changing()
    return [row.ids for row in rows]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_rows_of_each_adapter_have_the_tokens_of_the_library(family: str, tmp_path: Path) -> None:
    names = ["wide", BASE, "few"]
    plain = adapted(loaded(family, tmp_path / "m"))
    wanted = drawn(plain, names)
    assert drawn(plain, [BASE]) != wanted
    inner = loaded(family, tmp_path / "m")
    quick = quicken(inner)
    assert quick is not None
    model = adapted(inner)
    assert quick_of(model) is quick
    quick.library = None  # the library's pass is not needed
    assert drawn(model, names) == wanted


def test_the_layout_of_a_weight_changes_no_token(tmp_path: Path) -> None:
    plain = adapted(loaded("llama", tmp_path / "m", intermediate_size=512))
    inner = loaded("llama", tmp_path / "m")
    quick = quicken(inner)
    assert quick is not None
    layouts = [joined.weight.is_contiguous() for joined in quick._layers[0].joined]
    assert layouts == [False, False, True, False], "1,024 outputs of the feed-forward, fewer elsewhere"
    names = ["wide", BASE, "few"]
    assert drawn(adapted(inner), names) == drawn(plain, names)


def test_the_adapter_that_is_switched_on_answers(tmp_path: Path) -> None:
    plain = adapted(loaded("llama", tmp_path / "m"))
    inner = loaded("llama", tmp_path / "m")
    quick = quicken(inner)
    model = adapted(inner)
    batching = Batching(model, most_rows=4)
    batching.use(model)
    batching.changing()  # as for the questions of an evaluation: PEFT says which adapter is on
    ids = torch.tensor([PROMPTS[1]])
    with torch.inference_mode():
        for name in ("wide", "few"):
            plain.set_adapter(name)
            model.set_adapter(name)
            torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(ids).logits)
        with plain.disable_adapter(), model.disable_adapter():
            torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, plain(ids).logits)
    assert quick is not None
    with torch.inference_mode():
        cast = model.get_base_model().to(torch.bfloat16)
        assert cast(input_ids=ids, use_cache=False).logits.dtype == torch.bfloat16
    model.float().train()
    logits = model(input_ids=ids, use_cache=False).logits
    assert logits.requires_grad, "training keeps the library's pass"


@pytest.mark.parametrize("kept", [1, 2, 8, 9])
def test_the_last_positions_see_what_is_before_them_alone(kept: int, tmp_path: Path) -> None:
    inner, plain = loaded("llama", tmp_path / "m"), loaded("llama", tmp_path / "m")
    assert quicken(inner) is not None
    ids = torch.tensor([PROMPTS[1]])
    with torch.inference_mode():
        found = inner(input_ids=ids, logits_to_keep=kept, use_cache=False).logits
        torch.testing.assert_close(found, plain(ids, logits_to_keep=kept).logits)


@pytest.mark.parametrize("kept", [1, 2, 9])
def test_prompts_with_different_adapters_are_read_in_one_pass(kept: int, tmp_path: Path) -> None:
    plain, inner = adapted(loaded("llama", tmp_path / "m")), loaded("llama", tmp_path / "m")
    quick = quicken(inner)
    model = adapted(inner)
    batching = Batching(model, most_rows=4)
    batching.use(model)
    assert quick is not None and isinstance(quick.mixing, Mixing)
    names = ["wide", BASE, "few", "wide"]
    ids = torch.tensor([PROMPTS[1], PROMPTS[1][::-1], PROMPTS[1], [12] * 9])
    with torch.inference_mode():
        quick.mixing.rows(names, ids.device)
        found = model(input_ids=ids, logits_to_keep=kept, use_cache=False).logits
        for name, row, logits in zip(names, ids, found, strict=True):
            with plain.disable_adapter() if name == BASE else nullcontext():
                if name != BASE:
                    plain.set_adapter(name)
                torch.testing.assert_close(logits, plain(row[None], logits_to_keep=kept).logits[0])


@pytest.mark.parametrize("saved", ["lm_head", "input_layernorm", "norm"])
def test_modules_that_an_adapter_saved_answer_its_rows_alone(saved: str, tmp_path: Path) -> None:
    def tuned() -> Any:
        inner = loaded("llama", tmp_path / "m")
        quicken(inner)
        torch.manual_seed(3)
        model: Any = get_peft_model(inner, LoraConfig(modules_to_save=[saved], task_type="CAUSAL_LM"), "own")
        for name, weights in model.named_parameters():
            if "modules_to_save" in name:
                weights.data.normal_()
        return model.eval()

    def greedy(model: Any, prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        for _ in range(tokens):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        return ids[0, len(prompt) :].tolist()

    plain, names = tuned(), ["own", BASE]
    plain.get_base_model().forward = quick_of(plain).library  # type: ignore[union-attr]
    wanted = list[list[int]]()
    with torch.inference_mode():
        for n, prompt in enumerate(PROMPTS):
            with nullcontext() if names[n % 2] == "own" else plain.disable_adapter():
                wanted.append(greedy(plain, prompt, 6 + n))
    assert drawn(tuned(), names) == wanted


def test_a_pass_that_disagrees_leaves_the_model_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quick_pass, "_agrees", lambda *_: False)
    inner, plain = loaded("llama", tmp_path / "m"), loaded("llama", tmp_path / "m")
    assert quicken(inner) is None and quick_of(inner) is None
    for (name, weights), (_, before) in zip(inner.named_parameters(), plain.named_parameters(), strict=True):
        assert weights.is_contiguous() and torch.equal(weights, before), name


def test_another_shape_keeps_the_pass_of_the_library(tmp_path: Path) -> None:
    assert quicken(loaded("gpt2", tmp_path / "g")) is None
    odd = loaded("llama", tmp_path / "m")
    odd.config.hidden_act = "gelu"
    assert quicken(odd) is None
    assert quicken(loaded_with_window(tmp_path / "w")) is None
    strange = loaded("llama", tmp_path / "m")
    strange.model.layers[0].register_forward_hook(lambda _, given, said: said * 2)
    assert quicken(strange) is None, "its logits are others"
