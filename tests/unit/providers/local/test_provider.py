"""What this machine says of a spec before it trains: settings, rows, time."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from tests.paths import TINY

from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.errors import ConfigError, SpecError
from orchestrate.local.job import AdapterSettings, LocalJob, Supervised
from orchestrate.local.objectives import isolation
from orchestrate.local.run import RunDir, checkpoints, now
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.providers.local.translation import translate
from orchestrate.settings import config
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import JobHandle, Outcome, Setting

SAME = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "operation": "eq",
    "reference": "{{item.answer}}",
}
CODE = {"type": "python", "name": "x", "source": "def grade(sample, item): return 1"}


def settings(method: dict[str, Any], **more: Any) -> dict[str, Setting]:
    options = {"local": more.pop("options", {})}
    values = {"model": str(TINY), "train": "train.jsonl", "method": method, "provider_options": options}
    found = translate(JobSpec.parse(values | more), {})
    return {s.name: s for s in found.settings}


def rft(**more: Any) -> dict[str, Any]:
    return {"type": "rft", "grader": SAME, **more}


def test_code_is_allowed_by_the_user_alone_and_its_bounds_are_told() -> None:
    values = {"model": str(TINY), "train": "t.jsonl", "method": rft(grader=CODE)}
    assert translate(JobSpec.parse(values), {}).refused
    found = translate(JobSpec.parse(values), {"allow_grader_code": True})
    assert not found.refused and found.body["hyper"]["run_grader_code"] is True
    [grader] = [s for s in found.settings if s.name == "method.grader"]
    assert isolation().description in str(grader.rule)
    with TemporaryDirectory() as folder:
        for table in ("local", "hosts.local.options", "hosts.ray.options"):
            (Path(folder) / "orchestrate.toml").write_text(f"[{table}]\nallow_grader_code = true\n")
            with pytest.raises(ConfigError, match="unknown field") as refused:
                config.load(env={}, cwd=Path(folder))
            assert "--allow-grader-code" in str(refused.value.fix)
        (Path(folder) / "orchestrate.toml").unlink()
        assert config.load(env={}, cwd=Path(folder)).host("local").options["allow_grader_code"] is False
        for mine in (
            config.load(env={"ORCHESTRATE_ALLOW_GRADER_CODE": "1"}, cwd=Path(folder)),
            config.load(env={}, cwd=Path(folder), allow_grader_code=True),
        ):
            assert mine.host("local").options["allow_grader_code"] is True


SHARES = {"processes": 2, "sharded": True}


@pytest.mark.parametrize(
    ("options", "more", "reason"),
    [
        ({**SHARES, "optimizer": "paged_adamw_8bit"}, {}, "optimizer paged_adamw_8bit"),
        ({**SHARES, "engine": "fused"}, {}, "engine fused"),
        ({**SHARES, "processes": 1}, {}, "one process"),
        (SHARES, {"adapter": {"type": "qlora", "dora": True}}, "DoRA"),
        (SHARES, {}, None),
    ],
)
def test_what_is_trained_in_shares(options: Any, more: Any, reason: str | None) -> None:
    row = settings({"type": "sft"}, options=options, **more)["provider_options.sharded"]
    assert (row.outcome is Outcome.REFUSED) is (reason is not None)
    assert (reason or "") in str(row.rule)


def test_reinforcement_as_asked() -> None:
    method = rft(samples_per_prompt=4, kl_beta=0.02)
    options = {"max_new_tokens": 64, "grader_seconds": 2}
    values = {
        "model": str(TINY),
        "train": "t.jsonl",
        "method": method,
        "provider_options": {"local": options},
    }
    found = translate(JobSpec.parse(values), {})
    assert not found.refused
    assert found.body["method"] == method
    assert {k: found.body["hyper"][k] for k in options} == options
    assert found.body["hyper"]["learning_rate"] == 1e-5


@pytest.mark.parametrize(("machine", "told"), [({"device": "cpu"}, True), ({"gpu_memory_gib": 24}, False)])
def test_the_plan_says_that_packing_gains_nothing_on_a_cpu(machine: Any, told: bool) -> None:
    values = {"model": str(TINY), "train": "t.jsonl", "packing": True}
    (row,) = (s for s in translate(JobSpec.parse(values), machine).settings if s.name == "packing")
    assert row.sent is True and row.outcome is Outcome.KEPT
    assert (
        "no benefit on a CPU, where rows are already packed or batched by similar length" in str(row.rule)
    ) is told


def test_reinforcement_by_default() -> None:
    found = settings(rft())
    assert (found["method.samples_per_prompt"].outcome, found["method.samples_per_prompt"].sent) == (
        Outcome.DEFAULTED,
        8,
    )
    assert "an answer of 256 tokens" in str(found["max_seq_length"].rule)
    assert not [s for s in found.values() if s.outcome is Outcome.REFUSED]


@pytest.mark.parametrize(
    ("name", "method", "more", "reason"),
    [
        (
            "method.grader",
            rft(grader={"evaluator": "accounts/a/evaluators/b"}),
            {},
            "evaluators are only supported on hosted backends. Use a grader",
        ),
        (
            "method.grader",
            rft(grader={"type": "score_model", "model": "o3"}),
            {},
            "calls a model API for each answer",
        ),
        ("method.grader", rft(grader=CODE), {}, "--allow-grader-code"),
        ("method.samples_per_prompt", rft(samples_per_prompt=1), {}, "at least 2"),
        ("method.kl_beta", rft(kl_beta=0.1), {"adapter": "full"}, "second copy"),
        ("method.compute_multiplier", rft(compute_multiplier=2), {}, "samples_per_prompt"),
        ("method.reasoning_effort", rft(reasoning_effort="low"), {}, "no such training setting"),
        ("packing", rft(), {"packing": True}, "nothing to pack"),
        (
            "provider_options.micro_batch",
            {"type": "sft"},
            {"gradient_accumulation": 4, "options": {"micro_batch": 1}},
            "the spec also sets gradient_accumulation: 4. Remove one of the two",
        ),
        ("max_seq_length", rft(), {"max_seq_length": 256}, "256 tokens, which leaves no room"),
        ("provider_options.max_new_tokens", rft(), {"options": {"max_new_tokens": 0}}, "at least 1"),
        ("provider_options.spike_factor", rft(), {"options": {"spike_factor": 3}}, "has no spikes"),
        (
            "provider_options.run_grader_code",
            rft(),
            {"options": {"run_grader_code": True}},
            "a spec cannot grant itself permission to run code. Remove this setting",
        ),
    ],
)
def test_what_this_machine_has_not_is_refused(
    name: str, method: dict[str, Any], more: dict[str, Any], reason: str
) -> None:
    found = settings(method, **more)
    assert found[name].outcome is Outcome.REFUSED and reason in str(found[name].rule), found[name]
    assert [s.name for s in found.values() if s.outcome is Outcome.REFUSED] == [name]


def test_orpo_and_its_weight() -> None:
    found = settings({"type": "dpo", "loss": "orpo", "beta": 0.2, "normalize_by_length": False})
    assert (found["method.loss"].sent, found["method.beta"].sent) == ("orpo", 0.2)
    assert not [s for s in found.values() if s.outcome is Outcome.REFUSED]
    assert settings({"type": "dpo"})["method.loss"].sent == "dpo"


def test_kto_and_its_weights() -> None:
    found = settings({"type": "dpo", "loss": "kto", "undesirable_weight": 1.5, "normalize_by_length": False})
    assert (found["method.loss"].sent, found["method.undesirable_weight"].sent) == ("kto", 1.5)
    assert found["method.desirable_weight"].sent == 1.0 and found["method.beta"].sent == 0.1
    assert not [s for s in found.values() if s.outcome is Outcome.REFUSED]


Check = Callable[..., tuple[LocalProvider, JobSpec, TrainingData]]


@pytest.fixture
def ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    # A quote reckons with what else runs on the machine, which is never the same for two of them.
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))

    def make(rows: list[dict[str, Any]], **more: Any) -> tuple[LocalProvider, JobSpec, TrainingData]:
        path = tmp_path / "train.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        values = {"model": str(TINY), "train": str(path), "method": rft()}
        spec = JobSpec.parse(values | more)
        provider = LocalProvider(HostConfig(name="local", options={"home": str(tmp_path)}))
        return provider, spec, TrainingData.open(spec.train)

    return make


def row(n: int, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"Is {n} even?"}], "note": n, **fields}


def test_a_row_without_what_the_grader_reads_is_found_before(ready: Check) -> None:
    provider, spec, data = ready([row(n, **({} if n in (3, 5) else {"answer": "x"})) for n in range(20)])
    missing = [
        p for p in provider.check(spec, data, provider.translate(spec)) if p.code == "grader-field-missing"
    ]
    assert [(p.row, p.field, p.message) for p in missing] == [
        (4, "answer", "the grader uses item.answer, which 2 of 20 rows lack")
    ]
    provider, spec, data = ready([row(n, answer="x") for n in range(20)])
    assert not [
        p for p in provider.check(spec, data, provider.translate(spec)) if p.severity.value == "error"
    ]


def test_prompts_that_leave_no_room_are_told_before(ready: Check) -> None:
    rows = [row(n, answer="x") for n in range(20)]
    rows[7]["messages"][0]["content"] = "word " * 300
    options = {"local": {"max_new_tokens": 20}}
    provider, spec, data = ready(rows, max_seq_length=128, provider_options=options)
    found = {p.code: p.message for p in provider.check(spec, data, provider.translate(spec))}
    assert "1 of 20 prompts have more than 108 tokens" in found["prompts-left-out"]
    assert "too-long" not in found


def test_chat_rows_are_no_prompts(ready: Check) -> None:
    chat = [row(n) for n in range(20)]
    for r in chat:
        del r["note"]
        r["messages"].append({"role": "assistant", "content": "no"})
    provider, spec, data = ready(chat)
    assert "wrong-kind" in [p.code for p in provider.check(spec, data, provider.translate(spec))]


def test_the_quote_counts_the_answers(ready: Check) -> None:
    rows = [row(n, answer="x") for n in range(200)]

    def seconds(**more: Any) -> float:
        provider, spec, data = ready(rows, **more)
        quote = provider.quote(spec, data, provider.translate(spec), built_in())
        assert quote.unavailable is None and quote.low_usd < quote.expected_usd < quote.high_usd
        assert any("tokens are sampled per prompt and epoch" in a for a in quote.assumptions)
        return (quote.train_seconds or 0) - 10

    once = seconds()
    assert seconds(method=rft(samples_per_prompt=16)) == pytest.approx(2 * once, rel=0.01)
    assert seconds(epochs=6) == pytest.approx(2 * once, rel=0.01)
    assert seconds(provider_options={"local": {"max_new_tokens": 512}}) > 1.8 * once


def test_the_quote_counts_the_steps(ready: Check) -> None:
    """20 rows, 3 of them to a step: 7 steps to an epoch."""

    def quoted(**more: Any) -> tuple[float, list[str]]:
        provider, spec, data = ready(chats(20), method={"type": "sft"}, batch_size=3, **more)
        quote = provider.quote(spec, data, provider.translate(spec), built_in())
        assert quote.unavailable is None
        return (quote.train_seconds or 0) - 10, list(quote.assumptions)

    epoch, _ = quoted(epochs=1)
    for asked, epochs in (
        ({"max_steps": 14}, 2),
        ({"max_steps": 3}, 3 / 7),
        ({"epochs": 2, "max_steps": 99}, 2),
        ({"epochs": 9, "max_steps": 7}, 1),
    ):
        seconds, told = quoted(**asked)
        assert seconds == pytest.approx(epochs * epoch, rel=0.01)
        assert any("with 7 per epoch" in line for line in told)


def chats(count: int) -> list[dict[str, Any]]:
    said = ({"role": "user", "content": "Is {} even?"}, {"role": "assistant", "content": "no"})
    return [{"messages": [{**m, "content": m["content"].format(n)} for m in said]} for n in range(count)]


def errors_of(ready: Check, **more: Any) -> dict[str, str]:
    provider, spec, data = ready(chats(20), method={"type": "sft"}, **more)
    found = [p for p in provider.check(spec, data, provider.translate(spec)) if p.severity.value == "error"]
    return {p.code: p.message for p in found}


def test_a_model_that_cannot_be_trained_is_told_before(ready: Check, tmp_path: Path) -> None:
    bare, broken, empty = (tmp_path / name for name in ("bare", "broken", "empty"))
    empty.mkdir()
    for folder, text in ((bare, "{}"), (broken, "{")):
        folder.mkdir()
        (folder / "config.json").write_text(text)
    (tmp_path / "some.gguf").write_bytes(b"GGUF")
    for model, reason in (
        ("./nonexist", "no model folder at ./nonexist"),
        (str(empty), "no config.json"),
        (str(bare), "no .safetensors"),
        (str(broken), "could not parse"),
    ):
        assert reason in errors_of(ready, model=model)["model-unusable"]
    for model in (str(tmp_path / "some.gguf"), "someone/Qwen3-8B-GGUF"):
        told = errors_of(ready, model=model)
        assert list(told) == ["setting-refused"] and "served but not trained" in told["setting-refused"]
    assert not errors_of(ready)


def test_a_model_that_must_be_downloaded_is_told_before(
    ready: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def told(model: str) -> list[tuple[str, str | None]]:
        provider, spec, data = ready(chats(20), method={"type": "sft"}, model=model)
        found = provider.check(spec, data, provider.translate(spec))
        return [(p.severity.value, p.fix) for p in found if p.code == "model-to-download"]

    fetch = "hf download someone/small"
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert told("someone/small") == [("info", fetch)]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert told("someone/small") == [("warning", fetch)]
    kept = tmp_path / "cache" / "models--someone--small"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("0" * 40)
    shutil.copytree(TINY, kept / "snapshots" / ("0" * 40))
    assert told("someone/small") == told(str(TINY)) == []


def test_what_the_template_does_with_rows_is_told_before(ready: Check, tmp_path: Path) -> None:
    """A row that training would end at, and words that it would not see."""
    model = tmp_path / "strict"
    shutil.copytree(TINY, model)
    (model / "chat_template.jinja").unlink(missing_ok=True)
    file = model / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings["chat_template"] = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role here') }}"
        "{% endif %}"
        "<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    )
    file.write_text(json.dumps(settings))
    rows = chats(20)
    rows[4]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    rows[6]["messages"][-1]["reasoning_content"] = "Let me see."
    provider, spec, data = ready(rows, model=str(model), method={"type": "sft"})
    found = {p.code: p for p in provider.check(spec, data, provider.translate(spec))}
    refused, changed = found["template-refuses"], found["template-changes"]
    assert (refused.severity.value, refused.row) == ("error", 5) and "no system role" in refused.message
    assert (changed.severity.value, changed.row) == ("warning", 7) and "reasoning" in changed.message
    # Every other row is counted all the same, as an encoding of its own has it.
    _, _, rest = ready(rows[:4] + rows[5:], model=str(model), method={"type": "sft"})
    counter = f"hf:{model}"
    assert data.train.tokens(counter).tokens == rest.train.tokens(counter).tokens > 0


@pytest.mark.slow
def test_layers_that_the_model_has_not_are_told_before(ready: Check) -> None:
    unknown = errors_of(ready, adapter={"type": "lora", "targets": ["nosuch_proj"]})["unknown-target"]
    assert "nosuch_proj" in unknown
    for targets in (["q_proj", "layers.1.mlp.up_proj"], "all-linear", ["lm_head"]):
        assert not errors_of(ready, adapter={"type": "lora", "targets": targets})
    provider, spec, data = ready(
        chats(20), method={"type": "sft"}, adapter={"type": "lora", "targets": ["q_proj", "nosuch"]}
    )
    (some,) = (p for p in provider.check(spec, data, provider.translate(spec)) if p.code == "unknown-target")
    assert some.severity.value == "warning" and "q_proj" in str(some.fix)
    experts = {"type": "lora", "target_parameters": ["experts.down_proj"]}
    assert "no experts" in errors_of(ready, adapter=experts)["unknown-target"]
    refused = errors_of(ready, adapter={**experts, "dropout": 0.1})["setting-refused"]
    assert "does not support dropout" in refused


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("threads", 0),
        ("threads", -3),
        ("micro_batch", 0),
        ("neftune_alpha", -3),
        ("neftune_alpha", float("nan")),
        ("spike_factor", 1),
        ("spike_factor", float("inf")),
        ("recovery_seconds", -1),
        ("device", "tpu"),
        ("optimizer", 8),
        ("gradient_checkpointing", "yes"),
        ("warmth", 3),
    ],
)
def test_options_out_of_bounds_are_refused(option: str, value: object) -> None:
    found = settings({"type": "sft"}, options={option: value})[f"provider_options.{option}"]
    assert found.outcome is Outcome.REFUSED and found.rule


def test_the_machine_s_own_settings_have_the_same_bounds() -> None:
    spec = JobSpec.parse({"model": str(TINY), "train": "t.jsonl"})
    assert translate(spec, {"threads": 2}).body["threads"] == 2
    with pytest.raises(ConfigError, match="threads must be at least 1"):
        translate(spec, {"threads": -1})


@pytest.mark.parametrize(("asked", "stops"), [({"evals": 0}, False), ({"epochs": 1}, False), ({}, True)])
def test_stopping_early_needs_evaluations_to_stop_at(asked: dict[str, int], stops: bool) -> None:
    found = settings({"type": "sft"}, validation="v.jsonl", early_stopping={"patience": 1}, **asked)
    refused = [s.name for s in found.values() if s.outcome is Outcome.REFUSED]
    assert refused == ([] if stops else ["early_stopping"])


@pytest.mark.parametrize(("kind", "four_bit"), [("qlora", True), ("lora", False)])
def test_a_checkpoint_is_answered_over_the_base_of_its_run(tmp_path: Path, kind: Any, four_bit: bool) -> None:
    provider = LocalProvider(HostConfig(name="local", options={"home": str(tmp_path)}))
    job = LocalJob(
        ref="orc-1",
        model=str(TINY),
        model_name="tiny",
        train="t.jsonl",
        method=Supervised(),
        adapter=AdapterSettings(type=kind),
        created_at=now(),
    )
    run, _ = RunDir.make(provider.home / "runs", job)

    def fill(draft: Path) -> None:
        (draft / "adapter").mkdir()
        (draft / "adapter" / "adapter_config.json").write_text("{}")

    checkpoints.save(run.checkpoints, checkpoints.Progress(step=38, total_steps=38), fill)
    handle = JobHandle(provider="local", job_id="orc-1")
    assert provider.generator(handle, checkpoint="38").four_bit is four_bit


LONG = "word " * 300


def of_rows(ready: Check, rows: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    provider, spec, data = ready(rows, **{"method": {"type": "sft"}, **more})
    return {p.code: p for p in provider.check(spec, data, provider.translate(spec))}


def test_prompts_that_leave_nothing_of_the_answers_are_told_before(ready: Check) -> None:
    rows = chats(20)
    for one in rows:
        one["messages"][0]["content"] += LONG
    found = of_rows(ready, rows, max_seq_length=64)
    assert found["nothing-to-train"].severity.value == "error"
    assert "nothing-to-train" not in of_rows(ready, rows, max_seq_length=64, truncation="left")
    # Some of them.
    found = of_rows(ready, chats(20)[:4] + rows[4:6], max_seq_length=64)
    assert "nothing-to-train" not in found
    assert (found["answer-lost"].row, found["answer-lost"].message[:6]) == (5, "2 rows")
    assert "answer-lost" not in of_rows(ready, chats(20), max_seq_length=64)


def test_pairs_that_differ_only_in_what_is_cut_are_told_before(ready: Check) -> None:
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"Is {n} even?"}],
            "chosen": [{"role": "assistant", "content": f"{LONG * (n < 2)}yes"}],
            "rejected": [{"role": "assistant", "content": f"{LONG * (n < 2)}no"}],
        }
        for n in range(20)
    ]
    found = of_rows(ready, pairs, method={"type": "dpo"}, max_seq_length=64)
    assert (found["answer-lost"].row, found["answer-lost"].message[:6]) == (1, "2 rows")
    assert "differ" in found["answer-lost"].message


def test_a_choice_of_messages_that_chooses_none_is_told_before(ready: Check) -> None:
    silent = chats(20)
    for one in silent:
        one["messages"][-1]["weight"] = 0
    for rows, train_on in ((chats(20), ["tool"]), (silent, "last"), (silent, "all")):
        found = of_rows(ready, rows, method={"type": "sft", "train_on": train_on})
        assert found["nothing-to-train"].severity.value == "error"
    rows = [*silent[:19], *chats(1)]
    assert "nothing-to-train" not in of_rows(ready, rows, method={"type": "sft", "train_on": "last"})


@pytest.mark.parametrize(("steps", "told"), [(1000, True), (6, True), (5, False)])
def test_a_warm_up_longer_than_the_run_is_told(ready: Check, steps: int, told: bool) -> None:
    found = of_rows(ready, chats(20), warmup_steps=steps)  # 2 steps to an epoch
    assert ("rate-never-peaks" in found) is told


def test_shares_of_the_steps_add_up() -> None:
    shares = {"schedule": "warmup_stable_decay", "decay_ratio": 0.5}
    JobSpec.parse({"model": "m", "train": "t.jsonl", "warmup_ratio": 0.5, **shares})
    with pytest.raises(SpecError, match="sum must be at most 1"):
        JobSpec.parse({"model": "m", "train": "t.jsonl", "warmup_ratio": 0.6, **shares})
