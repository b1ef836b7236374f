from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestrate import DPO, RFT, JobSpec, LoRA, QLoRA, TrainFile
from orchestrate.errors import SpecError, UsageError
from orchestrate.spec import specfile


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text(text)
    return path


def test_yaml_and_python_make_the_same_spec(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: qwen3-8b\ntrain: /data/t.jsonl\nmethod: {type: dpo, beta: 0.2}\n"
        "adapter: {type: qlora, r: 8}\nepochs: 2\nmax_cost_usd: 0.1\n",
    )
    python = JobSpec(
        model="qwen3-8b",
        train="/data/t.jsonl",
        method=DPO(beta=0.2),
        adapter=QLoRA(r=8),
        epochs=2,
        max_cost_usd=Decimal("0.1"),
    )
    assert specfile.load(path) == python
    assert specfile.load(path).hash() == python.hash()


def test_every_mistake_is_named_with_its_line_and_the_allowed_values(tmp_path: Path) -> None:
    path = write(
        tmp_path, "model: m\ntrain: t.jsonl\nepoch: 3\nschedule: wavy\nadapter:\n  type: lora\n  rank: 4\n"
    )
    with pytest.raises(SpecError) as caught:
        specfile.load(path)
    text = str(caught.value)
    assert "line 3: epoch: unknown field (did you mean epochs?)" in text
    assert "line 4: schedule: Input should be 'constant', 'linear', 'cosine', 'polynomial' or" in text
    assert "line 7: adapter.rank: unknown field" in text and "alpha, alpha_pattern, dora, dropout" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: m\ntrain: t\nepochs: 1\nepochs: 2\n",
            "line 4: epochs: duplicate field, first set on line 3",
        ),
        ("model: [unclosed\n", "line 2"),
        ("- a\n- b\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("model: ''\ntrain: t\n", "model must not be empty"),
        ("model: m\ntrain: t\nlearning_rate: 1.0e-4\nlearning_rate_multiplier: 2\n", "not both"),
        (
            "model: m\ntrain: t\nmethod: ppo\n",
            "line 3: method: unknown value 'ppo' (did you mean dpo?); allowed: 'sft', 'dpo', 'rft'",
        ),
        ("model: m\ntrain: t\nepochs: three\n", "line 3: epochs: must be an integer, got 'three'"),
        ("model: m\ntrain: t\nsuffix: 'has space'\n", "line 3: suffix"),
        (
            "model: m\ntrain: t\nsuffix: v2-ORC-1qrn0nq0kvxa\n",
            "line 3: suffix: it contains 'orc-1qrn0nq0kvxa'",
        ),
        ("model: m\ntrain: t\nsuffix: orc_1qrn0nq0kvxab\n", "line 3: suffix: it contains 'orc_1qrn0nq0kvxa'"),
        (
            "model: 3\ntrain: 4\n",
            "line 1: model: must be a name, or a mapping with a name for each backend, got 3",
        ),
        ("model: m\ntrain: 4\n", "line 2: train: must be text, got 4; put it in quotes"),
        ("model: m\ntrain: t\nepochs: yes\n", "line 3: epochs: must be a number, not yes or no"),
        ("model: m\ntrain: t\nlearning_rate: .inf\n", "line 3: learning_rate: must be a finite number"),
        ("model: m\ntrain: t\nbatch_size: 0\n", "line 3: batch_size must be at least 1"),
        ("model: m\ntrain: t\nbatch_size: min\n", "line 3: batch_size: must be an integer, or max"),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, loss: orpo, simpo_gamma: 1}\n",
            "simpo_gamma does not apply to the loss orpo",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, loss: hinge}\n",
            "method.loss: Input should be 'dpo', 'ipo', 'orpo' or 'kto'",
        ),
        (
            "model: m\ntrain: t\nmethod: kto\n",
            "line 3: method: kto is a loss of the dpo method: write {type: dpo, loss: kto}",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: kto, beta: 0.2}\n",
            "line 3: method: kto is a loss of the dpo method: write {type: dpo, loss: kto}",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, loss: kto, rpo_alpha: 1}\n",
            "rpo_alpha does not apply to the loss kto",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, desirable_weight: 2}\n",
            "desirable_weight only applies to the loss kto",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, beta: 2.5}\n",
            "beta must be at most 2 (or 10 with simpo_gamma)",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, beta: 10.5, simpo_gamma: 1}\n",
            "method.beta: Input should be less than or equal to 10, got ",
        ),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, loss: kto, undesirable_weight: 0}\n",
            "method.undesirable_weight: Input should be greater than 0",
        ),
        ("model: m\ntrain: t\nmethod: {beta: 1}\n", "line 3: method.beta: is a setting of dpo, not of sft"),
        (
            "model: m\ntrain: t\noverrides:\n  local:\n    epochs: many\n",
            "line 5: overrides.local.epochs: must be an integer, got 'many'",
        ),
        ("model: m\ntrain: []\n", "line 2: train: must not be empty"),
        (
            "model: m\ntrain: [a, {path: b, wieght: 2}]\n",
            "line 2: train.1.wieght: unknown field (did you",
        ),
        ("model: m\ntrain: [a, {path: b, weight: 0}]\n", "train.1.weight: Input should be greater than 0"),
        ("model: m\ntrain: t\noptimizer: sgd\n", "line 3: optimizer.type: Input should be 'adamw',"),
        ("model: m\ntrain: t\noptimizer: 3\n", "line 3: optimizer: must be a name, or a mapping with a type"),
        (
            "model: m\ntrain: t\noptimizer: {type: lion, eps: 1.0e-9}\n",
            "line 3: optimizer: eps is not a parameter of lion",
        ),
        (
            "model: m\ntrain: t\nadapter:\n  init_lora_weights: xavier\n",
            "line 4: adapter.init_lora_weights: unknown value 'xavier'; allowed: gaussian, orthogonal, pissa",
        ),
        (
            "model: m\ntrain: t\nadapter: {init_lora_weights: olora, dora: true}\n",
            "dora does not support init_lora_weights: olora",
        ),
        (
            "model: m\ntrain: t\nadapter: {type: full, rank_pattern: {q_proj: 4}}\n",
            "adapter.rank_pattern: is a setting of lora, qlora, not of full",
        ),
        (
            "model: m\ntrain: t\nvalidation: v\nevals: 2\neval_steps: 5\n",
            "set either eval_steps or evals, not both",
        ),
        ("model: m\ntrain: t\nkeep_best: true\n", "line 3: keep_best needs validation data"),
        ("model: m\ntrain: t\nadded_tokens: [a, a]\n", "line 3: added_tokens contains a duplicate token"),
        (
            "model: m\ntrain: t\nmethod: {type: dpo, loss: ipo, label_smoothing: 0.1}\n",
            "label_smoothing does not apply to the loss ipo",
        ),
        ("model: m\ntrain: t\ntags: {lora: 3}\n", "line 3: tags.lora: must be text, got 3"),
        ("model: m\ntrain: t\n\0", "line 3: the character"),
        ("model: m\ntrain: t\ntags: &a {b: *a}\n", "nested too deeply, or an anchor refers to itself"),
        ("model: " + "[" * 3000, "nested too deeply, or an anchor refers to itself"),
    ],
)
def test_bad_files_say_where_and_why(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        specfile.load(write(tmp_path, text))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("rows.jsonl", b'{"text": "a"}\n{"text": "b"}\n'),
        ("rows.csv", b"question,answer\nHi,Hello\n"),
        ("rows.parquet", b"PAR1\xff\xfe"),
    ],
)
def test_rows_in_place_of_a_spec_lead_to_init(tmp_path: Path, name: str, rows: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(rows)
    with pytest.raises(SpecError) as caught:
        specfile.load(path)
    assert str(caught.value.fix).startswith(f"orchestrate init {path}")


def test_a_missing_file_points_to_init(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        specfile.load(tmp_path / "none.yaml")
    assert caught.value.fix is not None and "orchestrate init" in caught.value.fix


def test_data_paths_are_relative_to_the_file_and_urls_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    path = write(
        tmp_path, "model: {local: base, together: qwen3-8b}\ntrain: t.jsonl\nvalidation: s3://b/v.jsonl\n"
    )
    spec = specfile.load(path)
    assert spec.train == str(tmp_path / "t.jsonl")
    assert spec.validation == "s3://b/v.jsonl"
    assert spec.model_for("local") == str(tmp_path / "base")
    assert spec.model_for("together") == "qwen3-8b"
    with pytest.raises(SpecError, match="has no model for openai"):
        spec.model_for("openai")


def test_the_paths_of_a_mix_are_relative_to_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\ntrain: [a.jsonl, {path: b.jsonl, weight: 0.5}, s3://b/c.jsonl]\n")
    spec = specfile.load(path)
    assert [(file.path, file.weight) for file in spec.train_files] == [
        (str(tmp_path / "a.jsonl"), 1),
        (str(tmp_path / "b.jsonl"), 0.5),
        ("s3://b/c.jsonl", 1),
    ]
    assert JobSpec.parse(spec.asked()) == spec and specfile.anchored(spec) == spec
    assert specfile.anchored(JobSpec(model="m", train=(TrainFile(path="a"),))).train_files[0].path == str(
        Path.cwd() / "a"
    )


def test_later_fields_leave_the_hashes_of_earlier_specs_as_they_were() -> None:
    """Both as an earlier version made them."""
    full = {
        "model": {"local": "tiny", "openai": "gpt-4.1-mini"},
        "train": "t.jsonl",
        "validation": "v.jsonl",
        "method": {"type": "dpo", "beta": 0.2},
        "adapter": {"type": "qlora", "r": 8},
        "epochs": 2,
        "batch_size": "max",
        "evals": 3,
        "checkpoints": 2,
        "early_stopping": {"patience": 3},
        "tags": {"a": "b"},
        "max_cost_usd": "2.5",
        "overrides": {"local": {"epochs": 1}},
        "provider_options": {"local": {"optimizer": "paged_adamw_8bit"}},
    }
    known = JobSpec.parse(full)
    assert known.hash() == "0ea67ebaadf463626c48b79eb7fb4f4da7b200f25fa8de44c18e6a9537cea33c"
    rft = {"model": "m", "train": "t", "adapter": "full", "method": {"type": "rft", "grader": {"a": 1}}}
    assert JobSpec.parse(rft).hash() == "5201dba5710f193e8fecd66eeff3e746314371e55a264cd5ead4d15b3990a5c5"
    for later in (
        {"max_steps": 3},
        {"optimizer": "adamw"},
        {"adapter": {"rank_pattern": {"q": 1}}},
        {"chat_template": "{{ x }}"},
        {"columns": {"prompt": "Message body", "id": None}},
        {"chat_template_kwargs": {"enable_thinking": False}},
    ):
        assert JobSpec.parse(full | later).hash() != known.hash()


def test_overrides_reach_into_parts(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\ntrain: t\nadapter: qlora\n")
    settings = specfile.parse_settings(["adapter.r=4", "epochs=2", "tags.team=nlp"])
    spec = specfile.load(path, settings)
    assert spec.adapter == QLoRA(r=4)
    assert spec.epochs == 2
    assert spec.tags == {"team": "nlp"}


def test_a_setting_of_one_backends_model_keeps_the_others(tmp_path: Path) -> None:
    for more, other in (("", "m"), ("overrides: {local: {model: q}, openai: {model: o}}\n", "o")):
        path = write(tmp_path, f"model: m\ntrain: t\n{more}")
        for setting in ({"model.local": "tiny"}, {"model": {"local": "tiny"}}):
            spec = specfile.load(path, setting)
            assert [spec.on(name).model for name in ("local", "openai", "together")] == ["tiny", other, "m"]


def test_a_backend_gets_its_own_model_and_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "model: {local: tiny, openai: gpt}\ntrain: t\nepochs: 3\nadapter: {type: lora, r: 8}\n"
        "overrides:\n  local: {epochs: 1, adapter: qlora}\n",
    )
    spec = specfile.load(path)
    assert (spec.on("openai").model, spec.on("openai").epochs) == ("gpt", 3)
    assert spec.on("openai").adapter == LoRA(r=8)
    local = spec.on("local")
    assert (local.model, local.epochs, local.adapter) == ("tiny", 1, QLoRA(r=8))
    assert "overrides" not in local.asked() and local.on("local") == local


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"train": "other"}, "overrides.local cannot change train"),
        ({"epoch": 1}, "did you mean epochs"),
        ({"epochs": 0}, "epochs: Input should be greater"),
    ],
)
def test_a_wrong_override_is_refused(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        JobSpec.parse({"model": "m", "train": "t", "overrides": {"local": fields}}).on("local")


def test_what_was_asked_makes_the_same_spec() -> None:
    spec = JobSpec(model="m", train="t", adapter=LoRA(r=8), method=DPO(beta=0.3))
    assert JobSpec.parse(spec.asked()) == spec


def test_what_is_set_for_a_command_wins_over_the_overrides_of_backends(tmp_path: Path) -> None:
    own = "overrides: {local: {learning_rate: 2.0e-3, adapter: qlora}, openai: {epochs: 3}, fake: {}}"
    file = write(tmp_path, f"model: m\ntrain: rows.jsonl\nlearning_rate: 1.0e-5\n{own}\n")
    given = {"learning_rate": 1e-4, "adapter.r": 8, "epochs": 2, "overrides.fake.seed": 7}
    spec = specfile.load(file, given)
    for backend in ("local", "openai", "fake", "another"):
        there = spec.on(backend)
        assert (there.learning_rate, there.adapter.r, there.epochs) == (1e-4, 8, 2), backend
        assert there.adapter.type == ("qlora" if backend == "local" else "lora")
        assert there.seed == (7 if backend == "fake" else spec.seed)
    assert specfile.load(file).on("local").learning_rate == 2e-3


BASE: dict[str, Any] = {
    "adapter": {"type": "lora", "r": 32, "dropout": 0.1, "targets": ["q_proj", "k_proj"]},
    "method": {"type": "dpo", "beta": 0.2},
    "optimizer": {"type": "adamw", "betas": [0.9, 0.95]},
    "early_stopping": {"patience": 4, "min_delta": 0.5},
    "chat_template_kwargs": {"thinking": False, "today": "2026-01-01"},
    "provider_options": {"local": {"threads": 1}, "openai": {"x": {"y": 1}}},
    "validation": "v.jsonl",
    "epochs": 3,
}


@pytest.mark.parametrize(
    ("given", "section", "expected"),
    [
        ({"adapter": "qlora"}, "adapter", {**BASE["adapter"], "type": "qlora"}),
        ({"adapter": QLoRA(r=4)}, "adapter", {**BASE["adapter"], "type": "qlora", "r": 4}),
        ({"adapter": {"r": None}}, "adapter", {k: v for k, v in BASE["adapter"].items() if k != "r"}),
        ({"adapter": {"targets": ["v_proj"]}}, "adapter", {**BASE["adapter"], "targets": ["v_proj"]}),
        ({"adapter": {"type": "full", **dict.fromkeys(["r", "dropout", "targets", "alpha"])}}, "adapter",
         {"type": "full"}),
        ({"adapter": None}, "adapter", None),
        ({"method": {"loss": "ipo"}}, "method", {"type": "dpo", "beta": 0.2, "loss": "ipo"}),
        ({"method": {"type": "sft", "beta": None}}, "method", {"type": "sft"}),
        ({"optimizer": "adamw_8bit"}, "optimizer", {"type": "adamw_8bit", "betas": [0.9, 0.95]}),
        ({"early_stopping": {"patience": 2}}, "early_stopping", {"patience": 2, "min_delta": 0.5}),
        ({"early_stopping": None}, "early_stopping", None),
        ({"chat_template_kwargs": {"thinking": True}}, "chat_template_kwargs",
         {"thinking": True, "today": "2026-01-01"}),
        ({"provider_options": {"openai": {"x": {"z": 2}}}}, "provider_options",
         {"local": {"threads": 1}, "openai": {"x": {"y": 1, "z": 2}}}),
        ({"epochs": None}, "epochs", None),
    ],
)  # fmt: skip
def test_a_part_that_is_overridden_or_set_keeps_its_other_settings(
    tmp_path: Path, given: dict[str, Any], section: str, expected: object
) -> None:
    shared = {"model": "m", "train": "t", **BASE}
    spec = JobSpec.parse({**shared, "overrides": {"local": given}})
    for own in (spec, JobSpec.parse(spec.asked())):
        assert own.on("local").asked().get(section) == expected
        assert own.on("openai") == JobSpec.parse(shared)
    file = write(tmp_path, specfile.yaml_text(shared))
    assert specfile.load(file, given).asked().get(section) == expected
    # A command wins over overrides, and changes only what it names there too.
    file = write(tmp_path, specfile.yaml_text({**shared, "overrides": {"local": {section: BASE[section]}}}))
    assert specfile.load(file, given).on("local").asked().get(section) == expected


def test_a_grader_is_replaced() -> None:
    first, second = {"type": "string_check", "operation": "eq"}, {"type": "python", "source": "..."}
    values = {"model": "m", "train": "t", "method": {"type": "rft", "grader": first, "kl_beta": 0.1}}
    spec = JobSpec.parse({**values, "overrides": {"openai": {"method": {"grader": second}}}})
    assert spec.on("openai").method == RFT(grader=second, kl_beta=0.1)


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"adapter": "full"}, "adapter.r: is a setting of lora, qlora, not of full"),
        ({"method": "sft"}, "method.beta: is a setting of dpo, not of sft"),
        ({"optimizer": "adafactor"}, "betas is not a parameter of adafactor"),
        ({"adapter": {"dropuot": None}}, "adapter.dropuot: unknown field"),
    ],
)
def test_settings_that_another_type_lacks_are_not_dropped(
    tmp_path: Path, change: dict[str, Any], wrong: str
) -> None:
    shared = {"model": "m", "train": "t", **BASE}
    with pytest.raises(SpecError, match=wrong):
        JobSpec.of({**shared, "overrides": {"local": change}})
    with pytest.raises(SpecError, match=wrong):
        specfile.load(write(tmp_path, specfile.yaml_text(shared)), change)


@pytest.mark.parametrize("pair", ["epochs", "=3", "epochs=[1"])
def test_a_malformed_set_is_a_usage_error(pair: str) -> None:
    with pytest.raises(UsageError):
        specfile.parse_settings([pair])


def test_the_template_is_a_valid_spec_and_fits_the_schema(tmp_path: Path) -> None:
    spec = specfile.load(write(tmp_path, specfile.template()))
    assert spec.adapter == LoRA(r=16)
    schema = specfile.json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(yaml.safe_load(specfile.template()), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"model": "m", "train": "t", "epoch": 3}, schema)
    json.dumps(schema)


@given(
    epochs=st.none() | st.integers(1, 100),
    rate=st.none() | st.floats(1e-9, 1, allow_nan=False),
    batch=st.none() | st.just("max") | st.integers(1, 512),
    tags=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_a_spec_survives_its_own_yaml(
    epochs: int | None, rate: float | None, batch: object, tags: dict[str, str]
) -> None:
    spec = JobSpec.parse(
        {
            "model": "m",
            "train": "t",
            "epochs": epochs,
            "learning_rate": rate,
            "batch_size": batch,
            "tags": tags,
        }
    )
    again = specfile.build(yaml.safe_load(yaml.safe_dump(spec.model_dump(mode="json"))))
    assert again == spec and again.hash() == spec.hash()


def test_settings_without_a_type_are_those_of_the_default(tmp_path: Path) -> None:
    path = write(tmp_path, "model: m\ntrain: t\n")
    assert specfile.load(path, {"adapter.r": 8}).adapter == LoRA(r=8)
    assert specfile.load(write(tmp_path, "model: m\ntrain: t\nadapter: {r: 8}\n")).adapter == LoRA(r=8)


def test_a_windows_editors_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_bytes(b"\xef\xbb\xbfmodel: m\r\ntrain: t\r\nepochs: 2\r\n")
    assert specfile.load(path).epochs == 2


def test_a_chat_template_is_a_file_beside_the_spec_or_its_text(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    path = write(
        tmp_path,
        "model: m\ntrain: t\nchat_template: own.jinja\nchat_template_kwargs: {enable_thinking: false}\n"
        "overrides:\n  local: {chat_template: own.jinja}\n",
    )
    spec = specfile.load(path)
    assert spec.chat_template == str(tmp_path / "own.jinja") == spec.on("local").chat_template
    kept = specfile.anchored(spec)
    assert (
        kept.chat_template == "{{ messages[0].content }}" == specfile.anchored(spec.on("local")).chat_template
    )
    # What the file holds decides, not its name.
    (tmp_path / "own.jinja").write_text("{{ messages[-1].content }}")
    assert specfile.anchored(spec).hash() != kept.hash()
    for text in ("no template", None):
        (tmp_path / "own.jinja").unlink()
        if text:
            (tmp_path / "own.jinja").write_text(text)
        with pytest.raises(SpecError, match=r"chat_template: .*own.jinja( contains no|: )"):
            specfile.with_template(spec)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("{messages: 1}", "not a valid name for a template variable"),
        ("{two words: 1}", "not a valid name for a template variable"),
        ("{__class__: 1}", "not a valid name for a template variable"),
        ("{x: .inf}", "x must be a string, a number"),
        ("{x: 2026-01-01}", "x must be a string, a number"),
        ("{}", "must not be empty"),
    ],
)
def test_what_a_template_cannot_go_by_is_said(tmp_path: Path, written: str, reason: str) -> None:
    path = write(tmp_path, f"model: m\ntrain: t\nchat_template_kwargs: {written}\n")
    with pytest.raises(SpecError, match="line 3: chat_template_kwargs") as told:
        specfile.load(path)
    assert reason in str(told.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "not both"),
        ({"schedule": "constant", "min_lr_ratio": 0.1}, "min_lr_ratio"),
        ({"schedule": "cosine", "decay_ratio": 0.1}, "warmup_stable_decay"),
        ({"schedule_power": 2}, "polynomial"),
        ({"method": {"type": "sft", "train_on_inputs": True, "train_on": "last"}}, "train_on_inputs"),
        ({"method": {"type": "sft", "train_on": ["user", "user"]}}, "duplicate role"),
        ({"method": {"type": "sft", "train_on": ["bot"]}}, "train_on"),
        ({"method": {"type": "sft", "train_on": []}}, "train_on"),
    ],
)
def test_settings_that_say_two_things_are_mistakes(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError) as caught:
        JobSpec.parse({"model": "m", "train": "t", **wrong})
    assert told in str(caught.value)


def test_the_new_settings_leave_the_hash_of_older_specs_as_it_was() -> None:
    """As specs of before them have it in the store."""
    later = {
        "warmup_steps",
        "min_lr_ratio",
        "decay_ratio",
        "schedule_power",
        "truncation",
        "save_total_limit",
    }
    canonical = JobSpec.parse({"model": "m", "train": "t"}).canonical()
    assert (
        not later & canonical.keys() and not {"train_on", "ignore_empty_think"} & canonical["method"].keys()
    )
