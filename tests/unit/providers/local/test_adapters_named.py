"""What an adapter names and what it goes on from, seen before a worker starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.paths import TINY

from orchestrate.data import TrainingData
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.providers.local.translation import translate
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Setting

pytestmark = [
    pytest.mark.usefixtures("quick_python"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
CHAT = {"messages": [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]}


def planned(adapter: dict[str, Any], **more: Any) -> dict[str, Setting]:
    values = {"model": str(TINY), "train": "t.jsonl", "method": {"type": "sft"}, "adapter": adapter}
    return {s.name: s for s in translate(JobSpec.parse(values | more), {}).settings}


def checked(home: Path, adapter: dict[str, Any], **more: Any) -> list[tuple[str, str, str | None]]:
    """(code, severity, field)"""
    path = home / "train.jsonl"
    path.write_text((json.dumps(CHAT) + "\n") * 4)
    values = {"model": str(TINY), "train": str(path), "method": {"type": "sft"}, "adapter": adapter}
    spec = JobSpec.parse(values | more)
    provider = LocalProvider(HostConfig(name="local", options={"home": str(home)}))
    found = provider.check(spec, TrainingData.open(spec.train), provider.translate(spec))
    return [(p.code, p.severity.value, p.field) for p in found if p.code in LOOKED_FOR]


LOOKED_FOR = ("unknown-target", "names-not-looked-at", "setting-refused")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "field", "told"),
    [
        ({"targets": ["q_prj"]}, "targets", "no layer q_prj; did you mean q_proj?"),
        ({"targets": r".*\.q_prj"}, "targets", "no layer"),
        ({"modules_to_save": ["embed_tokens", "lm_haed"]}, "modules_to_save", "did you mean lm_head?"),
        (
            {"exclude_modules": ["v_prj"]},
            "exclude_modules",
            "no target matches v_prj; did you mean v_proj?",
        ),
        ({"exclude_modules": "(q|k)_proj"}, "exclude_modules", "no target matches (q|k)_proj"),
        ({"targets": ["q_proj"], "exclude_modules": ["v_proj"]}, "exclude_modules", "matches v_proj"),
        ({"targets": ["q_proj"], "exclude_modules": ["q_proj"]}, "exclude_modules", "excludes every target"),
        ({"rank_pattern": {"q_prj": 4}}, "rank_pattern", "no target matches q_prj"),
        ({"rank_pattern": {"q_proj": 4}, "exclude_modules": ["q_proj"]}, "rank_pattern", "matches q_proj"),
        ({"alpha_pattern": {"layers.9.q_proj": 4.0}}, "alpha_pattern", "no target matches layers.9.q_proj"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters", "the model has no experts"),
        ({"rank_pattern": {"q_proj(": 4}}, "rank_pattern", "is not a valid regular expression:"),
        ({"layers_to_transform": [0, 9]}, "layers_to_transform", "has layers 0 to 2, not 9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_setting_that_fits_nothing_is_refused(
    tmp_path: Path, adapter: dict[str, Any], field: str, told: str
) -> None:
    row = planned({"type": "lora", **adapter})[f"adapter.{field}"]
    assert row.outcome is Outcome.REFUSED and told in str(row.rule)
    [(code, severity, where)] = checked(tmp_path, {"type": "lora", **adapter})
    assert (code in LOOKED_FOR, severity, where) == (True, "error", f"adapter.{field}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "field", "told"),
    [
        ({"targets": ["q_proj", "nosuch"]}, "targets", "the model has no layer nosuch"),
        ({"exclude_modules": ["q_proj", "nosuch"]}, "exclude_modules", "no target matches nosuch"),
        ({"rank_pattern": {"q_proj": 4, "nosuch": 2}}, "rank_pattern", "no target matches nosuch"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_of_a_setting_fits_nothing_is_told(
    tmp_path: Path, adapter: dict[str, Any], field: str, told: str
) -> None:
    row = planned({"type": "lora", **adapter})[f"adapter.{field}"]
    assert row.outcome is Outcome.MAPPED and not row.exact and told in str(row.rule)
    assert checked(tmp_path, {"type": "lora", **adapter}) == [
        ("unknown-target", "warning", f"adapter.{field}")
    ]


@pytest.mark.parametrize(
    "adapter",
    [
        {},
        {"targets": ["q_proj", "layers.1.mlp.up_proj", "lm_head"]},
        {"modules_to_save": ["embed_tokens", "norm", "layers.1.mlp.down_proj"], "targets": ["q_proj"]},
        {"exclude_modules": r".*layers\.[12]\..*", "rank_pattern": {r"layers\.0\.mlp\.(up|down)_proj": 2}},
    ],
    ids=["default", "targets", "saved", "patterns"],
)
def test_what_the_model_has_is_kept(tmp_path: Path, adapter: dict[str, Any]) -> None:
    rows = planned({"type": "lora", **adapter})
    assert all(rows[f"adapter.{field}"].outcome is Outcome.KEPT for field in adapter)
    assert checked(tmp_path, {"type": "lora", **adapter}) == []


@pytest.mark.slow
def test_a_model_that_is_not_here_is_not_looked_at_and_that_is_told(tmp_path: Path) -> None:
    adapter = {"type": "lora", "modules_to_save": ["lm_haed"]}
    row = planned(adapter, model="nobody/nothing-1b")["adapter.modules_to_save"]
    assert row.outcome is Outcome.KEPT
    assert "names not checked: the model's configuration is not on this machine" in str(row.rule)
    (tmp_path / "strange").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (tmp_path / "strange" / name).symlink_to(TINY / name)
    config = json.loads((TINY / "config.json").read_bytes())
    (tmp_path / "strange" / "config.json").write_text(json.dumps({**config, "model_type": "nosuch"}))
    there = {"model": str(tmp_path / "strange")}
    row = planned(adapter, **there)["adapter.modules_to_save"]
    assert "names not checked: transformers does not support model_type nosuch" in str(row.rule)
    assert checked(tmp_path, adapter, **there) == [("names-not-looked-at", "info", "adapter")]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter as peft writes it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("earlier")
    base: Any = AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True)
    config = LoraConfig(
        r=4,
        lora_alpha=12,
        lora_dropout=0.1,
        target_modules=["q_proj", "v_proj"],
        rank_pattern={"q_proj": 2},
        use_rslora=True,
        task_type="CAUSAL_LM",
    )
    get_peft_model(base, config).save_pretrained(folder)
    return folder


def test_settings_are_those_of_the_adapter_that_is_gone_on_from(earlier: Path) -> None:
    rows = planned({"type": "lora"}, continue_from=str(earlier))
    values = {name: row.sent for name, row in rows.items() if name.startswith("adapter.")}
    assert values["adapter.r"] == 4 and values["adapter.alpha"] == 12 and values["adapter.dropout"] == 0.1
    assert values["adapter.rslora"] is True and values["adapter.rank_pattern"] == {"q_proj": 2}
    assert values["adapter.targets"] == "q_proj, v_proj"
    assert "rank 4" in str(rows["continue_from"].rule) and str(TINY) in str(rows["continue_from"].rule)
    spec = {"model": str(TINY), "train": "t", "method": "sft", "continue_from": str(earlier)}
    found = translate(JobSpec.parse(spec), {})
    whole = translate(JobSpec.parse({**spec, "continue_from": None}), {})
    assert sorted(found.body["adapter"].pop("targets")) == ["q_proj", "v_proj"]
    assert found.memory and whole.memory and found.memory.parts["optimizer"] < whole.memory.parts["optimizer"]


@pytest.mark.parametrize(
    ("adapter", "outcome"),
    [
        (
            {"r": 4, "alpha": 12, "dropout": 0.1, "rslora": True, "targets": ["v_proj", "q_proj"]},
            Outcome.KEPT,
        ),
        ({"rank_pattern": {"q_proj": 2}}, Outcome.KEPT),
        ({"targets": "all-linear"}, Outcome.MAPPED),
        ({"r": 8}, Outcome.REFUSED),
        ({"alpha": 8}, Outcome.REFUSED),
        ({"dropout": 0.2}, Outcome.REFUSED),
        ({"dora": True}, Outcome.REFUSED),
        ({"targets": ["q_proj"]}, Outcome.REFUSED),
        ({"targets": ["q_proj", "k_proj", "v_proj"]}, Outcome.REFUSED),
        ({"rank_pattern": {"q_proj": 4}}, Outcome.REFUSED),
        ({"modules_to_save": ["lm_head"]}, Outcome.REFUSED),
        ({"layers_to_transform": [0]}, Outcome.REFUSED),
        ({"init_lora_weights": "pissa"}, Outcome.REFUSED),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_differs_from_it_is_refused(earlier: Path, adapter: dict[str, Any], outcome: Outcome) -> None:
    rows = planned({"type": "lora", **adapter}, continue_from=str(earlier))
    assert {field: rows[f"adapter.{field}"].outcome for field in adapter} == dict.fromkeys(adapter, outcome)
    if outcome is Outcome.REFUSED:
        assert all("continues from" in str(rows[f"adapter.{field}"].rule) for field in adapter)


def test_what_cannot_be_gone_on_from_is_refused(earlier: Path, tmp_path: Path) -> None:
    full = planned({"type": "full"}, continue_from=str(earlier))["continue_from"]
    assert full.outcome is Outcome.REFUSED and "full fine-tuning" in str(full.rule)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    other = planned({"type": "lora"}, continue_from=str(tmp_path))["continue_from"]
    assert other.outcome is Outcome.REFUSED and "IA3" in str(other.rule)
    none = planned({"type": "lora"}, continue_from=str(tmp_path / "none"))["continue_from"]
    assert none.outcome is Outcome.REFUSED


def test_the_model_without_weights_has_the_names_of_the_one_that_is_trained() -> None:
    from transformers import AutoModelForCausalLM

    from orchestrate.local.model.adapters.starts import names_of
    from orchestrate.local.model.weights import hollow

    whole: Any = AutoModelForCausalLM.from_pretrained(TINY, local_files_only=True)
    assert names_of(hollow(json.loads((TINY / "config.json").read_bytes()))) == names_of(whole)
