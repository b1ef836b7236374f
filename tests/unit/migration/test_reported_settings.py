"""The settings that hosts report of a job reach its run, and nothing is lost without a word."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from tests.scripted_host import Host, scripted_host
from tests.unit.migration.test_importing import GRADER, PAIR, openai, rows, uploaded

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.costing import bill_run, built_in
from orchestrate.errors import AlreadySubmitted, UsageError
from orchestrate.migration import account_import
from orchestrate.migration.account_import import Importer
from orchestrate.migration.migrations import MigrationOrder, PreparedMigration
from orchestrate.providers import registry
from orchestrate.runs.syncing.recovery import recover
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.spec import RFT, JobSpec
from orchestrate.store.store import Store
from orchestrate.types import Job, JobHandle, JobStatus, Run

LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
QWEN = "accounts/fireworks/models/qwen3-8b"
REF = "orc-1qrn0nq0kvxa"
JOB = Job(
    handle=JobHandle(provider="x", job_id="j"),
    status=JobStatus.SUCCEEDED,
    raw_status="ok",
    trained_tokens=9,
)


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as running:
        yield running


TOGETHER: dict[str, Any] = {
    "id": "ft-1", "status": "completed", "model": LLAMA, "created_at": "2026-11-20T10:00:00Z",
    "updated_at": "2026-11-20T10:00:00Z", "training_file": "file-1", "n_epochs": 2, "n_evals": 0,
    "user_id": "u", "packing": True, "total_price": 10**9, "batch_size": 8, "n_checkpoints": 1,
    "training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.0,
                      "lora_trainable_modules": "all-linear"},
    "training_method": {"method": "sft", "train_on_inputs": "auto"}, "warmup_ratio": 0.0,
    "weight_decay": 0.0, "max_grad_norm": 1.0, "random_seed": 42, "max_seq_length": 131_072,
    "lr_scheduler": {"lr_scheduler_type": "cosine",
                     "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 0.5}},
}  # fmt: skip
FIREWORKS: dict[str, Any] = {
    "createTime": "2026-11-20T10:00:00Z", "updateTime": "2026-11-20T11:00:00Z",
    "state": "JOB_STATE_COMPLETED", "dataset": "accounts/acme/datasets/d",
    "estimatedCost": {"currencyCode": "USD", "units": "3"},
}  # fmt: skip
COLLECTIONS = {
    "supervised": "supervisedFineTuningJobs",
    "dpo": "dpoJobs",
    "rft": "reinforcementFineTuningJobs",
}


def provided(host: Host, name: str, folder: Path) -> Any:
    base = f"{host.url}/v1" if name == "openai" else host.url
    env = {f"{name.upper()}_API_KEY": "a-key-of-a-real-host", f"{name.upper()}_BASE_URL": base}
    env |= {"FIREWORKS_ACCOUNT_ID": "acme", "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
    return registry.make(name, config.load(env=env, cwd=folder, home=folder))


def taken(host: Host, name: str, folder: Path) -> tuple[Run, dict[str, Any]]:
    """Import the one job that the host lists, and return its run and what its spec does not hold."""
    provider = provided(host, name, folder)
    try:
        with Store.open(f"sqlite:///{folder}/runs.sqlite3") as store:
            report = Importer(store, provider, folder / "files", built_in()).run(details=False)
            [run] = store.runs.matching()
            return run, report.settings[run.id].left_out
    finally:
        provider.close()


def openai_job(**more: Any) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job", "id": "ftjob-1", "model": "o4-mini-2025-04-16", "status": "succeeded",
        "created_at": 1_795_000_000, "organization_id": "org-1", "training_file": "file-1",
        "validation_file": "file-2", "result_files": [], "trained_tokens": 10, "fine_tuned_model": "ft:x",
        "hyperparameters": {}, "metadata": {}, "error": None, "finished_at": 1_795_000_100, "seed": 1,
    } | more  # fmt: skip


def listed(host: Host, job: dict[str, Any]) -> None:
    host.on("GET", "/v1/fine_tuning/jobs", {"object": "list", "data": [job], "has_more": False})


def together(host: Host, folder: Path, **more: Any) -> tuple[Run, dict[str, Any]]:
    host.on("GET", "/v1/fine-tunes", {"data": [TOGETHER | more]})
    return taken(host, "together", folder)


def test_the_defaults_that_together_reports_are_not_settings(host: Host, tmp_path: Path) -> None:
    run, left = together(host, tmp_path)
    spec = {name: value for name, value in run.spec.items() if name not in ("model", "train")}
    assert spec == {"epochs": 2, "batch_size": 8, "adapter": {"type": "lora", "r": 8, "alpha": 16.0}}
    assert left == {}


LINEAR = {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 0.1}}
FLAT = {"lr_scheduler_type": "linear", "lr_scheduler_args": {"min_lr_ratio": 1.0}}
WAVES = {"lr_scheduler_type": "cosine", "lr_scheduler_args": {"min_lr_ratio": 0.0, "num_cycles": 3.0}}
SIMPO = {"method": "dpo", "dpo_beta": 0.2, "simpo_gamma": 0.5, "dpo_reference_free": True,
         "dpo_normalize_logratios_by_length": True}  # fmt: skip


@pytest.mark.parametrize(
    ("job", "settings", "left"),
    [
        ({"lr_scheduler": LINEAR}, {"schedule": "linear", "min_lr_ratio": 0.1}, {}),
        ({"lr_scheduler": FLAT}, {"schedule": "constant"}, {}),
        ({"lr_scheduler": WAVES}, {}, {"lr_scheduler": WAVES}),
        ({"max_seq_length": 4096}, {"max_seq_length": 4096}, {}),
        ({"random_seed": 7, "n_checkpoints": 3}, {"seed": 7, "checkpoints": 3}, {}),
        ({"gradient_accumulation_steps": 4}, {"batch_size": 32, "gradient_accumulation": 4}, {}),
        ({"suffix": "mine"}, {"suffix": "mine"}, {}),
        ({"suffix": f"mine-{REF}"}, {"suffix": "mine"}, {}),
        ({"wandb_project_name": "p"}, {}, {"wandb_project_name": "p"}),
        (
            {"training_method": SIMPO},
            {"method": {"type": "dpo", "beta": 0.2, "simpo_gamma": 0.5}},
            {},
        ),
        (
            {"training_method": {"method": "dpo", "dpo_beta": 40.0, "rpo_alpha": 0.3}},
            {"method": {"type": "dpo", "rpo_alpha": 0.3}},
            {"method.beta": 40.0},
        ),
        (
            {"training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
                               "lora_trainable_modules": "q_proj,v_proj"}},
            {"adapter": {"type": "lora", "r": 8, "alpha": 16.0, "dropout": 0.1,
                         "targets": ["q_proj", "v_proj"]}},
            {},
        ),
        (
            {"multimodal_params": {"train_vision": True}},
            {"provider_options": {"together": {"multimodal_params": {"train_vision": True}}}},
            {},
        ),
    ],
)  # fmt: skip
def test_what_together_reports(
    host: Host, tmp_path: Path, job: dict[str, Any], settings: dict[str, Any], left: dict[str, Any]
) -> None:
    run, found = together(host, tmp_path, **job)
    assert {name: run.spec.get(name) for name in settings} == settings
    assert found == left
    JobSpec.parse(run.spec)


TRAINING = {"baseModel": QWEN, "epochs": 2, "learningRate": 1e-4, "loraRank": 16, "batchSizeSamples": 16,
            "learningRateWarmupSteps": 9, "maxContextLength": 4096, "optimizerWeightDecay": 0.01,
            "samplerCheckpointSaveIntervalSteps": 50, "jinjaTemplate": "{{ x }}",
            "lrScheduler": {"cosine": {"minLrRatio": 0.1, "decayRatio": 0.8}}}  # fmt: skip
TRAINED = {"epochs": 2, "learning_rate": 1e-4, "batch_size": 16, "warmup_steps": 9, "max_seq_length": 4096,
           "weight_decay": 0.01, "checkpoint_steps": 50, "schedule": "cosine",
           "min_lr_ratio": 0.1}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "job", "settings", "left"),
    [
        (
            "supervised",
            TRAINING | {"batchSize": 65536, "earlyStop": True, "evalAutoCarveout": True},
            TRAINED | {"adapter": {"type": "lora", "r": 16},
                       "provider_options": {"fireworks": {"jinjaTemplate": "{{ x }}",
                                                          "evalAutoCarveout": True}}},
            {"batchSize": 65536, "earlyStop": True, "lrScheduler.cosine.decayRatio": 0.8},
        ),
        (
            "dpo",
            {"trainingConfig": TRAINING | {"loraAlpha": 32, "loraTargetModules": ["q_proj"]},
             "lossConfig": {"method": "DPO", "dpo": {"beta": 0.3}}},
            TRAINED | {"method": {"type": "dpo", "beta": 0.3},
                       "adapter": {"type": "lora", "r": 16, "alpha": 32.0, "targets": ["q_proj"]}},
            {"lrScheduler.cosine.decayRatio": 0.8},
        ),
        (
            "dpo",
            {"trainingConfig": {"baseModel": QWEN},
             "lossConfig": {"method": "ORPO", "orpo": {"lambda": 0.4}}},
            {"method": {"type": "dpo", "loss": "orpo", "beta": 0.4}},
            {},
        ),
        (
            "dpo",
            {"trainingConfig": {"baseModel": QWEN}, "lossConfig": {"method": "GRPO"}},
            {"method": {"type": "dpo"}},
            {"lossConfig.method": "GRPO"},
        ),
        (
            "rft",
            {"trainingConfig": {"baseModel": QWEN}, "evaluator": "accounts/acme/evaluators/e",
             "lossConfig": {"method": "GRPO", "klBeta": 0.01}, "chunkSize": 200,
             "inferenceParameters": {"responseCandidatesCount": 8, "temperature": 0.7}},
            {"method": {"type": "rft", "grader": {"evaluator": "accounts/acme/evaluators/e"},
                        "samples_per_prompt": 8, "kl_beta": 0.01},
             "provider_options": {"fireworks": {"chunkSize": 200, "inferenceParameters.temperature": 0.7,
                                                "lossConfig.method": "GRPO"}}},
            {},
        ),
        (
            "supervised",
            {"warmStartFrom": "accounts/acme/models/first"},
            {"continue_from": "accounts/acme/models/first"},
            {},
        ),
    ],
)  # fmt: skip
def test_what_fireworks_reports(
    host: Host,
    tmp_path: Path,
    kind: str,
    job: dict[str, Any],
    settings: dict[str, Any],
    left: dict[str, Any],
) -> None:
    for name, folder in COLLECTIONS.items():
        one = {"name": f"accounts/acme/{folder}/j1"} | FIREWORKS | job
        host.on("GET", f"/v1/accounts/acme/{folder}", {folder: [one] if name == kind else []})
    run, found = taken(host, "fireworks", tmp_path)
    assert {name: run.spec.get(name) for name in settings} == settings
    assert found == left
    provider = provided(host, "fireworks", tmp_path)
    refused = {row.name for row in provider.translate(JobSpec.parse(run.spec)).refused}
    provider.close()
    assert not refused, "a rerun on the same host is not refused for what the host itself reported"


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("openai", openai_job(method={"type": "distillation", "distillation": {"hyperparameters": {}}})),
        ("together", TOGETHER | {"training_method": {"method": "grpo"}, "total_price": 0}),
    ],
)
def test_an_unknown_method_is_not_taken_for_another(
    host: Host, tmp_path: Path, name: str, job: dict[str, Any]
) -> None:
    host.on("GET", "/v1/fine-tunes", {"data": [job]})
    listed(host, job)
    run, _ = taken(host, name, tmp_path)
    method = "distillation" if name == "openai" else "grpo"
    assert run.spec["method"] == {"type": method} and run.bill is None and run.quote is None
    again, _ = taken(host, name, tmp_path)
    assert again == run
    keys = {
        "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        f"{name.upper()}_API_KEY": "a-key-of-a-real-host",
    }
    settings = config.load(env=keys, cwd=tmp_path, home=tmp_path)
    with Orchestrator(structs.replace(settings, store_url=f"sqlite:///{tmp_path}/runs.sqlite3")) as ft:
        with pytest.raises(UsageError, match=f"method '{method}'"):
            PreparedMigration(ft, run.id, MigrationOrder(to=["together"]))
        assert bill_run(run, JOB, profile=ft.provider(name).profile) is None
        priced = structs.replace(JOB, cost_usd=Decimal(4))
        assert str(bill_run(run, priced, profile=ft.provider(name).profile).usd) == "4"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("method", "kind"), [("dpo", "dpo"), ({"type": ["dpo"]}, "['dpo']"), (["dpo"], "['dpo']")]
)
def test_a_method_of_another_form_is_not_taken_for_sft(
    host: Host, tmp_path: Path, method: Any, kind: str
) -> None:
    listed(host, openai_job(method=method))
    run, _ = taken(host, "openai", tmp_path)
    assert run.spec["method"] == {"type": kind}


def test_jobs_of_one_id_or_one_tag_are_all_imported(host: Host, tmp_path: Path) -> None:
    """Fireworks' ids are unique in each of its collections only, and anybody can tag a job as ours."""
    for folder in COLLECTIONS.values():
        one = {"name": f"accounts/acme/{folder}/same", "evaluator": "accounts/acme/evaluators/e"} | FIREWORKS
        host.on(
            "GET", f"/v1/accounts/acme/{folder}", {folder: [one | {"trainingConfig": {"baseModel": QWEN}}]}
        )
    tagged = [openai_job(id=f"ftjob-{n}", metadata={"orchestrate_ref": REF}, seed=n) for n in range(2)]
    host.on("GET", "/v1/fine_tuning/jobs", {"object": "list", "data": tagged, "has_more": False})
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as store:
        for name, jobs in (("fireworks", 3), ("openai", 2)):
            provider = provided(host, name, tmp_path)
            importer = Importer(store, provider, tmp_path / "files", built_in())
            assert len(importer.run(details=False).imported) == jobs
            again = importer.run(details=False)
            assert (again.imported, again.known, again.completed) == ([], jobs, set())
            provider.close()
        methods = [
            run.spec.get("method", {}).get("type") for run in store.runs.matching(provider="fireworks")
        ]
        assert set(methods) == {None, "dpo", "rft"}
        assert {run.spec["seed"] for run in store.runs.matching(provider="openai")} == {0, 1}


def test_openai_reports_evaluations_of_reinforcement(ft: Orchestrator, sandbox: Sandbox) -> None:
    """`eval_steps` needs the validation data, which comes after the settings."""
    client = openai(sandbox)
    prompts = [{"messages": [{"role": "user", "content": f"q{n}"}], "a": "x"} for n in range(24)]
    parts = [
        "".join(json.dumps(row) + "\n" for row in part).encode() for part in (prompts[:12], prompts[12:])
    ]
    ids = [client.files.create(file=("r.jsonl", part), purpose="fine-tune").id for part in parts]
    asked = {"eval_interval": 5, "eval_samples": 4, "batch_size": 8, "reasoning_effort": "low"}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": asked}}
    job = client.fine_tuning.jobs.create(
        model="o4-mini-2025-04-16", training_file=ids[0], validation_file=ids[1], method=method
    )
    sandbox.skip(3600)
    first = account_import.take(ft, "openai", files=False)
    run = ft.run(job.id)
    assert first.settings_left_out == {run.id: {"eval_steps": 5}}
    second = account_import.take(ft, "openai")
    spec = JobSpec.parse(ft.run(job.id).record.spec)
    assert (spec.method, spec.batch_size, spec.eval_steps) == (
        RFT(grader=GRADER, reasoning_effort="low"),
        8,
        5,
    )
    assert (second.completed, second.settings_left_out) == ([run.id], {})
    body = ft.provider("openai").translate(spec).body
    assert body["method"]["reinforcement"]["hyperparameters"].items() >= asked.items()


def older(ft: Orchestrator, run: Run, **spec: Any) -> Run:
    """The run as a version that read fewer settings made it."""
    return ft.store.runs.apply(run.id, lambda now: structs.replace(now, spec=spec))


def test_a_second_import_adds_what_is_missing_and_keeps_what_differs(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    client = openai(sandbox)
    pairs = "".join(json.dumps(PAIR) + "\n" for _ in range(12)).encode()
    file = client.files.create(file=("p.jsonl", pairs), purpose="fine-tune").id
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 3, "batch_size": 4}}}
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-2024-08-06", training_file=file, method=method, suffix="b\u00fcro", seed=3
    )
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    new = ft.run(job.id).record
    few = {"model": new.spec["model"], "train": new.spec["train"], "method": {"type": "dpo"}}
    older(ft, new, **few, batch_size=16)
    sandbox.clear_requests()
    report = account_import.take(ft, "openai")
    now = ft.run(job.id).record
    assert now.spec == new.spec | {"batch_size": 16}
    assert report.completed == [now.id] and report.settings_differing == {now.id: {"batch_size": (16, 4)}}
    assert report.settings_left_out == {now.id: {"suffix": "b\u00fcro"}}
    assert {entry["path"] for entry in sandbox.requests("openai")} <= {"/v1/fine_tuning/jobs"}
    third = account_import.take(ft, "openai")
    assert third.completed == [] and ft.run(job.id).record == now


def test_a_second_import_keeps_the_spec_of_a_run_that_was_migrated(
    ft: Orchestrator, sandbox: Sandbox
) -> None:
    """The same migration would otherwise be a new one, and be paid again."""
    client = openai(sandbox)
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-2024-08-06",
        training_file=uploaded(client, 12),
        hyperparameters={"n_epochs": 3},
        seed=3,
    )
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    new = ft.run(job.id).record
    old = older(ft, new, model=new.spec["model"], train=new.spec["train"])
    order = MigrationOrder(to=("together",), proof=False)
    moved = PreparedMigration(ft, old.id, order).submit("together")
    report = account_import.take(ft, "openai")
    assert ft.run(job.id).record.spec == old.spec and report.completed == []
    differing = report.settings_differing[old.id]
    assert (differing["epochs"], differing["seed"]) == ((None, 3), (None, 3))
    assert PreparedMigration(ft, old.id, order).submit("together").id == moved.id


def test_a_run_that_was_submitted_here_is_never_changed(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    run = ft.submit(JobSpec(model="gpt-4o-mini", train=str(path)), "openai")
    sandbox.skip(3600)
    before = ft.run(run.id).record.spec
    report = account_import.take(ft, "openai")
    assert ft.run(run.id).record.spec == before and report.settings_differing == {}


def test_migrate_lists_what_the_import_could_not_hold(ft: Orchestrator, sandbox: Sandbox) -> None:
    client = openai(sandbox)
    file = uploaded(client, 0)
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-mini-2024-07-18", training_file=file, suffix="b\u00fcro", seed=3
    )
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    prepared = PreparedMigration(ft, job.id, MigrationOrder(to=["together"], proof=False))
    [target] = prepared.proposal.targets
    assert [(one.what, one.was) for one in target.left_out if one.what == "suffix"] == [
        ("suffix", "b\u00fcro")
    ]


def test_import_fetches_the_files_of_recovered_runs(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    """`migrate` advises to import a run whose rows are not on this machine."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    spec = JobSpec(model="gpt-4o-mini", train=str(path), epochs=1)
    ours = ft.submit(spec, "openai")
    sandbox.skip(3600)
    with Orchestrator(structs.replace(ft.settings, store_url=f"sqlite:///{tmp_path}/b.sqlite3")) as other:
        recover(other.store, [other.provider("openai")])
        before = other.run(ours.id).record
        assert before.spec["train"] == "unknown"
        report = account_import.take(other, "openai")
        after = other.run(ours.id).record
        assert (report.files, report.imported, report.problems) == (1, 0, {})
        assert len(Path(after.spec["train"]).read_text().splitlines()) == 12
        assert not after.imported and after.dataset_digest == "", "it still blocks repeats"
        with pytest.raises(AlreadySubmitted):
            other.submit(spec, "openai")
        assert other.run(ours.id).events() and other.run(ours.id).metrics()
        assert account_import.take(other, "openai").files == 0
        other.sync()
        assert other.run(ours.id).record.bill is not None
        PreparedMigration(other, ours.id, MigrationOrder(to=["together"], proof=False))


def test_recover_adds_what_an_earlier_import_did_not_read(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    ours = ft.submit(JobSpec(model="gpt-4o-mini", train=str(path), epochs=1, seed=5), "openai")
    sandbox.skip(3600)
    with Orchestrator(structs.replace(ft.settings, store_url=f"sqlite:///{tmp_path}/b.sqlite3")) as other:
        account_import.take(other, "openai")
        spec = other.run(ours.id).record.spec
        older(other, other.run(ours.id).record, model=spec["model"], train=spec["train"])
        assert recover(other.store, [other.provider("openai")]).recovered == [ours.id]
        assert other.run(ours.id).record.spec == spec


def test_a_recover_at_the_same_moment_ends_no_import(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    ours = ft.submit(JobSpec(model="gpt-4o-mini", train=str(path), epochs=1), "openai")
    sandbox.skip(3600)
    with Orchestrator(structs.replace(ft.settings, store_url=f"sqlite:///{tmp_path}/b.sqlite3")) as other:
        restore = other.store.runs.restore

        def first(run: Run) -> None:
            other.store.runs.restore = restore  # type: ignore[method-assign]
            recover(other.store, [other.provider("openai")])
            restore(run)

        other.store.runs.restore = first  # type: ignore[method-assign]
        report = account_import.take(other, "openai")
        assert (report.imported, report.known, report.problems) == (0, 1, {})
        assert [run.id for run in other.store.runs.matching()] == [ours.id]


def test_a_recover_during_an_import_leaves_the_run_open_for_its_bill(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    ours = ft.submit(JobSpec(model="gpt-4o-mini", train=str(path), epochs=1), "openai")
    sandbox.skip(3600)
    with Orchestrator(structs.replace(ft.settings, store_url=f"sqlite:///{tmp_path}/b.sqlite3")) as other:

        def during(what: str, done: int, of: int) -> None:
            if what == "fetching jobs":
                recover(other.store, [other.provider("openai")])

        assert account_import.take(other, "openai", on_step=during).problems == {}
        assert [run.id for run in other.store.runs.matching(closed=False)] == [ours.id]
