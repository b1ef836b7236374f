"""Past jobs of an account become runs: once, with what belongs to them, and without a change on the host."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import time
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from fireworks import Fireworks
from msgspec import structs
from openai import OpenAI
from tests import command
from together import Together

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.costing.expenses import Spending, charges
from orchestrate.errors import AlreadySubmitted, UsageError
from orchestrate.migration import account_import
from orchestrate.providers.compatible import responses
from orchestrate.runs.syncing.recovery import recover
from orchestrate.sandbox.server import Sandbox
from orchestrate.settings import config
from orchestrate.spec import DPO, RFT, SFT, JobSpec, LoRA
from orchestrate.types import JobStatus

READS = ("GET",)
ANSWERED = {"role": "assistant", "content": "a"}


def rows(n: int) -> bytes:
    turns = [
        {"messages": [{"role": "user", "content": f"q {n} {i}"}, {"role": "assistant", "content": f"a {i}"}]}
        for i in range(12)
    ]
    return "".join(json.dumps(turn) + "\n" for turn in turns).encode()


def openai(sandbox: Sandbox) -> OpenAI:
    return OpenAI(
        base_url=sandbox.env["OPENAI_BASE_URL"], api_key=sandbox.env["OPENAI_API_KEY"], max_retries=0
    )


def uploaded(client: OpenAI, n: int) -> str:
    return client.files.create(file=(f"{n}.jsonl", rows(n)), purpose="fine-tune").id


def made(sandbox: Sandbox, jobs: int = 3) -> tuple[OpenAI, list[str], str]:
    """Jobs that a team made with the official client, one of them cancelled; ids, and the file of the
    first."""
    client = openai(sandbox)
    first, second = uploaded(client, 0), uploaded(client, 1)
    hyper: Any = {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 1.5}
    method: Any = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
    ids = [
        client.fine_tuning.jobs.create(
            model="gpt-4o-mini-2024-07-18",
            training_file=first if n % 2 == 0 else second,
            validation_file=second,
            method=method,
            suffix=f"job{n}",
            seed=n,
        ).id
        for n in range(jobs)
    ]
    client.fine_tuning.jobs.cancel(ids[-1])
    sandbox.skip(3600)
    return client, ids, first


def test_a_job_becomes_a_run_with_all_that_belongs_to_it(ft: Orchestrator, sandbox: Sandbox) -> None:
    client, ids, first = made(sandbox)
    sandbox.clear_requests()
    taken = account_import.take(ft, "openai")
    assert {entry["method"] for entry in sandbox.requests("openai")} <= set(READS), "read-only on the host"
    assert (taken.imported, taken.left_out, taken.files, taken.problems) == (2, 1, 2, {})
    run = next(r for r in ft.store.runs.matching() if r.job_id == ids[0])
    told = client.fine_tuning.jobs.retrieve(ids[0])
    assert (run.tuned_model, run.trained_tokens) == (told.fine_tuned_model, told.trained_tokens)
    assert run.status is JobStatus.SUCCEEDED and run.imported
    spec = JobSpec.parse(run.spec)
    assert (spec.epochs, spec.batch_size, spec.learning_rate_multiplier) == (2, 4, 1.5)
    assert (spec.suffix, spec.seed, spec.model) == ("job0", 0, "gpt-4o-mini-2024-07-18")
    assert isinstance(spec.train, str)
    content = Path(spec.train).read_bytes()
    assert content == rows(0)
    assert Path(spec.train).stem == hashlib.sha256(content).hexdigest()
    handle = ft.run(run.id)
    assert len(handle.events()) == len(client.fine_tuning.jobs.list_events(ids[0], limit=100).data)
    assert handle.metrics() and handle.checkpoints()
    # 3.00 USD for a million tokens of gpt-4o-mini: developers.openai.com/api/docs/pricing.
    assert run.bill is not None and told.trained_tokens is not None
    assert run.bill.usd == (Decimal(told.trained_tokens) * 3 / 1_000_000).quantize(Decimal("0.000001"))
    assert first in {file.id for file in _importer(ft).files()}


def _importer(ft: Orchestrator) -> Any:
    from orchestrate.migration.account_import import Importer

    return Importer(ft.store, ft.provider("openai"), ft.settings.home / "imported", ft.rates)


PAIR = {
    "input": {"messages": [{"role": "user", "content": "q"}]},
    "preferred_output": [ANSWERED],
    "non_preferred_output": [{"role": "assistant", "content": "b"}],
}
GRADER = {
    "type": "string_check",
    "name": "g",
    "input": "{{sample.output_text}}",
    "reference": "{{item.a}}",
    "operation": "eq",
}


@pytest.mark.parametrize("suffix", ["b\u00fcro", "$(touch x)", "a\nb", "x" * 64])
def test_a_setting_that_a_spec_rejects_takes_no_other_with_it(
    suffix: str, ft: Orchestrator, sandbox: Sandbox
) -> None:
    """OpenAI accepts up to 64 of any character in a suffix."""
    client = openai(sandbox)
    pairs = "".join(json.dumps(PAIR) + "\n" for _ in range(12)).encode()
    file = client.files.create(file=("p.jsonl", pairs), purpose="fine-tune").id
    method: Any = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.3, "n_epochs": 3, "batch_size": 4}}}
    job = client.fine_tuning.jobs.create(
        model="gpt-4o-2024-08-06", training_file=file, method=method, suffix=suffix, seed=3
    )
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    spec = JobSpec.parse(ft.run(job.id).record.spec)
    assert (spec.method, spec.epochs, spec.batch_size) == (DPO(beta=0.3), 3, 4)
    assert (spec.seed, spec.suffix) == (3, None)


def test_the_settings_of_reinforcement_come_too(ft: Orchestrator, sandbox: Sandbox) -> None:
    client = openai(sandbox)
    prompts = [{"messages": [{"role": "user", "content": f"q{n}"}], "a": "x"} for n in range(24)]
    ids = [
        client.files.create(
            file=("r.jsonl", "".join(json.dumps(row) + "\n" for row in part).encode()), purpose="fine-tune"
        ).id
        for part in (prompts[:12], prompts[12:])
    ]
    asked = {"reasoning_effort": "high", "compute_multiplier": 2.0}
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "hyperparameters": asked}}
    job = client.fine_tuning.jobs.create(
        model="o4-mini-2025-04-16", training_file=ids[0], validation_file=ids[1], method=method
    )
    sandbox.skip(3600)
    account_import.take(ft, "openai")
    spec = JobSpec.parse(ft.run(job.id).record.spec)
    assert spec.method == RFT(grader=GRADER, reasoning_effort="high", compute_multiplier=2.0)


def test_a_second_import_adds_nothing_and_asks_for_the_list_only(ft: Orchestrator, sandbox: Sandbox) -> None:
    made(sandbox)
    account_import.take(ft, "openai")
    before = {run.id: run for run in ft.store.runs.matching()}
    sandbox.clear_requests()
    taken = account_import.take(ft, "openai")
    assert (taken.imported, taken.known, taken.files) == (0, 2, 0)
    assert {run.id: run for run in ft.store.runs.matching()} == before
    assert {entry["path"] for entry in sandbox.requests("openai")} <= {"/v1/fine_tuning/jobs"}
    everything = account_import.take(ft, "openai", every=True)
    assert (everything.imported, everything.left_out) == (1, 0)


def test_a_job_without_a_date_is_one_run_too(
    ft: Orchestrator, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(sandbox, jobs=2)
    job_of = responses.job_of
    monkeypatch.setattr(responses, "job_of", lambda *given: structs.replace(job_of(*given), created_at=None))
    assert account_import.take(ft, "openai", files=False, details=False).imported == 1
    monkeypatch.setattr(ft.store.clock, "now", lambda: datetime.now(UTC) + timedelta(days=1))
    assert account_import.take(ft, "openai", files=False, details=False).imported == 0


def test_an_interrupted_import_goes_on(ft: Orchestrator, sandbox: Sandbox) -> None:
    _, ids, _ = made(sandbox)

    def stop(what: str, done: int, of: int) -> None:
        if what == "files fetched":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        account_import.take(ft, "openai", on_step=stop)
    assert len(ft.store.runs.matching()) == 2, "all jobs are runs before anything else is fetched"
    sandbox.clear_requests()
    taken = account_import.take(ft, "openai")
    assert (taken.imported, taken.files, taken.problems) == (0, 1, {})
    contents = [
        e for e in sandbox.requests("openai") if "/content" in e["path"] and "result" not in e["path"]
    ]
    assert len(contents) == 1, "the first file is not fetched again"
    assert all(ft.run(id).metrics() for id in ids[:2])


def test_two_at_once_do_not_write_into_one_file(ft: Orchestrator, sandbox: Sandbox) -> None:
    made(sandbox, 2)
    refused: list[str] = []

    def second(what: str, done: int, of: int) -> None:
        with pytest.raises(UsageError) as caught:
            account_import.take(ft, "openai")
        refused.append(caught.value.message)

    account_import.take(ft, "openai", on_step=second)
    assert refused and set(refused) == {"another command is importing from openai"}
    assert account_import.take(ft, "openai").files == 0


def test_what_fails_for_now_is_told_and_tried_again(ft: Orchestrator, sandbox: Sandbox) -> None:
    _, ids, _ = made(sandbox)
    sandbox.fault(
        "openai", "error", method="GET", path=f"/v1/fine_tuning/jobs/{ids[0]}/checkpoints", status=403
    )
    taken = account_import.take(ft, "openai")
    assert len(taken.problems) == 1
    assert account_import.take(ft, "openai").problems == {}
    assert ft.run(ids[0]).checkpoints()


def test_files_that_are_gone_are_in_the_inventory(ft: Orchestrator, sandbox: Sandbox) -> None:
    client, ids, first = made(sandbox)
    client.files.delete(first)
    taken = account_import.take(ft, "openai")
    found = {row.run_id: row for row in taken.inventory.rows}
    lost, kept = (found[ft.run(id).id] for id in ids[:2])
    assert lost.data.startswith("gone") and lost.rebuild.startswith("no")
    assert kept.data == "here" and "the same base model on azure until 2027-04-01" in kept.rebuild
    assert kept.silent_on == date(2027, 1, 14)
    assert taken.inventory.silent == ((date(2027, 1, 14), 2),)
    assert (taken.inventory.data_here, taken.inventory.data_gone) == (1, 1)


def test_what_is_lost_is_told_of_the_run_that_lost_it(ft: Orchestrator, sandbox: Sandbox) -> None:
    client, ids, first = made(sandbox)
    client.files.delete(first)
    account_import.take(ft, "openai")
    kept = ft.run(ids[1]).record.spec["train"]
    Path(kept).unlink()
    taken = account_import.take(ft, "openai", files=False, details=False)
    found = {row.run_id: row for row in taken.inventory.rows}
    lost, away = (found[ft.run(id).id] for id in ids[:2])
    assert first in lost.data and kept not in lost.data
    assert away.data == f"gone: {kept} no longer exists"


@pytest.mark.parametrize(
    "moved", [pytest.param(False, marks=pytest.mark.slow), True], ids=["files lost", "home moved"]
)
def test_a_restored_store_fetches_the_files_that_it_knows_and_has_not(
    ft: Orchestrator, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path, moved: bool
) -> None:
    made(sandbox)
    account_import.take(ft, "openai")
    shutil.copytree(tmp_path / "home", tmp_path / "restored")
    shutil.rmtree(tmp_path / "home" / "imported")
    if not moved:
        shutil.rmtree(tmp_path / "restored" / "imported")
    sandbox.clear_requests()
    env = own_env | {"ORCHESTRATE_HOME": str(tmp_path / "restored")}
    with Orchestrator(config.load(env=env, cwd=tmp_path)) as again:
        taken = account_import.take(again, "openai")
        trains = [str(run.spec["train"]) for run in again.store.runs.matching()]
        assert account_import.take(again, "openai").files == 0
    assert (taken.imported, taken.known, taken.problems, taken.inventory.data_here) == (0, 2, {}, 2)
    assert all(path.startswith(str(tmp_path / "restored")) for path in trains)
    paths = [e["path"] for e in sandbox.requests("openai") if e["path"].endswith("/content")]
    assert sum("result" not in path for path in paths) == (0 if moved else 2)


CONTENT = r"/v1/files/file-(?!result).*/content"


@pytest.mark.parametrize(
    ("kind", "status"),
    [("error", 403), pytest.param("html", 200, marks=pytest.mark.slow)],
    ids=["refused", "proxy's page"],
)
def test_a_file_that_is_not_given_out_today_is_asked_for_again(
    ft: Orchestrator, sandbox: Sandbox, kind: str, status: int
) -> None:
    _, ids, _ = made(sandbox)
    sandbox.fault("openai", kind, path=CONTENT, status=status, count=2)
    taken = account_import.take(ft, "openai")
    assert taken.inventory.data_here == 0 and bool(taken.problems) == (kind == "html")
    assert all(ft.run(id).record.spec["train"] == "unknown" for id in ids[:2])
    taken = account_import.take(ft, "openai")
    assert (taken.inventory.data_here, taken.files, taken.problems) == (2, 2, {})


def test_another_key_says_nothing_of_the_jobs_of_the_first(
    ft: Orchestrator, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    made(sandbox)
    sandbox.fault("openai", "html", path=CONTENT, count=2)
    account_import.take(ft, "openai")
    other = own_env | {"OPENAI_API_KEY": "sandbox-of-another-team"}
    with Orchestrator(config.load(env=other, cwd=tmp_path)) as theirs:
        taken = account_import.take(theirs, "openai")
    assert not taken.inventory.rows and not taken.problems and taken.account.startswith("organization")
    assert account_import.take(ft, "openai").inventory.data_here == 2, "what it could not see was not lost"


def full_import(arguments: list[str]) -> None:
    """An import in a process of its own, on a disk on which files cannot grow beyond so many bytes."""

    def tell(what: str, done: int, of: int) -> None:
        del done, of
        if what == "jobs listed":
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(arguments[0]), resource.RLIM_INFINITY))

    with Orchestrator(config.load(env=dict(os.environ), cwd=Path.cwd())) as ft:
        account_import.take(ft, "openai", on_step=tell)


@pytest.mark.slow
def test_on_a_full_disk_nothing_half_is_kept_and_it_goes_on(
    ft: Orchestrator, sandbox: Sandbox, own_env: dict[str, str], tmp_path: Path
) -> None:
    client = openai(sandbox)
    long = json.dumps({"messages": [{"role": "user", "content": "q" * 5_000}, ANSWERED]}).encode() + b"\n"
    file = client.files.create(file=("long.jsonl", long * 1000), purpose="fine-tune").id
    client.fine_tuning.jobs.create(model="gpt-4o-mini-2024-07-18", training_file=file)
    sandbox.skip(3600)
    ended = command.run([str(4 << 20)], cwd=tmp_path, env=own_env, program=full_import)
    assert ended.code == 1 and b"SetupError: no disk space for" in ended.err
    [run] = ft.store.runs.matching()
    assert run.spec["train"] == "unknown", "no half of a file passes for the whole"
    taken = account_import.take(ft, "openai")
    assert (taken.imported, taken.files, taken.problems) == (0, 1, {})
    assert Path(str(ft.run(run.id).record.spec["train"])).read_bytes() == long * 1000
    assert [p.suffix for p in (tmp_path / "home" / "imported").iterdir()] == [".jsonl"]


def test_an_import_takes_nothing_of_the_budget(ft: Orchestrator, sandbox: Sandbox) -> None:
    import msgspec

    from orchestrate.costing import spending

    _, ids, _ = made(sandbox)
    account_import.take(ft, "openai")
    run = msgspec.structs.replace(ft.run(ids[0]).record, sandbox=False)
    assert run.bill is not None and run.bill.usd > 0
    assert spending(run).total_usd == 0
    assert spending(msgspec.structs.replace(run, imported=False)).total_usd == run.bill.usd


def test_jobs_of_the_other_hosts(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    client = Together(base_url=sandbox.env["TOGETHER_BASE_URL"], api_key=sandbox.env["TOGETHER_API_KEY"])
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(7))
    file = client.files.upload(str(path), purpose="fine-tune", check=False)
    job = client.fine_tuning.create(
        training_file=file.id,
        model="Qwen/Qwen3.5-9B",
        n_epochs=2,
        learning_rate=2e-4,
        lora_r=8,
        suffix="theirs",
        train_on_inputs=True,
        warmup_ratio=0.1,
        packing=False,
    )
    sandbox.skip(3600)
    taken = account_import.take(ft, "together")
    assert (taken.imported, taken.files, taken.problems) == (1, 1, {})
    spec = JobSpec.parse(ft.run(str(job.id)).record.spec)
    assert (spec.epochs, spec.learning_rate, spec.adapter.type) == (2, 2e-4, "lora")
    assert (spec.method, spec.warmup_ratio, spec.packing) == (SFT(train_on_inputs=True), 0.1, False)
    assert spec.asked().keys().isdisjoint({"weight_decay", "max_grad_norm"}), "defaults are not settings"
    assert isinstance(spec.train, str) and Path(spec.train).read_bytes() == rows(7)


def test_jobs_of_a_host_with_names_of_their_own(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    account = sandbox.env["FIREWORKS_ACCOUNT_ID"]
    with Fireworks(
        base_url=sandbox.env["FIREWORKS_BASE_URL"],
        api_key=sandbox.env["FIREWORKS_API_KEY"],
        account_id=account,
        max_retries=0,
    ) as client:
        client.datasets.create(dataset_id="items", dataset={"user_uploaded": {}})
        client.datasets.upload("items", file=("items.jsonl", rows(5)))
        job = client.supervised_fine_tuning_jobs.create(
            dataset=f"accounts/{account}/datasets/items",
            base_model="accounts/fireworks/models/qwen3-8b",
            output_model=f"accounts/{account}/models/theirs",
            epochs=2,
            learning_rate=1e-4,
            lora_rank=16,
        )
        sandbox.skip(3600)
        client.supervised_fine_tuning_jobs.get(str(job.name).rsplit("/", 1)[-1])
    sandbox.clear_requests()
    taken = account_import.take(ft, "fireworks")
    assert {entry["method"] for entry in sandbox.requests("fireworks")} <= set(READS), "read-only on the host"
    assert (taken.imported, taken.files, taken.problems) == (1, 1, {})
    [run] = ft.store.runs.matching(provider="fireworks")
    assert run.status is JobStatus.SUCCEEDED and run.imported
    assert run.tuned_model == f"accounts/{account}/models/theirs"
    spec = JobSpec.parse(run.spec)
    assert (spec.epochs, spec.learning_rate, spec.adapter) == (2, 1e-4, LoRA(r=16))
    assert isinstance(spec.train, str) and Path(spec.train).read_bytes() == rows(5)
    assert run.bill is not None and run.bill.usd > 0
    assert account_import.take(ft, "fireworks").known == 1
    [row] = taken.inventory.rows
    assert row.silent_on is None and row.rebuild.startswith("yes")


def killed_import(arguments: list[str]) -> None:
    """An import in a process of its own, which ends itself where it is told."""
    place, at = arguments

    def tell(what: str, done: int, of: int) -> None:
        del of
        if (what, done) == (place, int(at)):
            os.kill(os.getpid(), signal.SIGKILL)

    with Orchestrator(config.load(env=dict(os.environ), cwd=Path.cwd())) as ft:
        account_import.take(ft, "openai", on_step=tell)


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(("jobs listed", 2), marks=pytest.mark.slow),
        pytest.param(("files fetched", 1), marks=pytest.mark.slow),
        pytest.param(("runs completed", 1), marks=pytest.mark.slow),
    ],
    ids=["list", "files", "details"],
)
def test_an_import_goes_on_after_a_kill(
    ft: Orchestrator,
    sandbox: Sandbox,
    own_env: dict[str, str],
    tmp_path: Path,
    place: tuple[str, int],
) -> None:
    _, ids, _ = made(sandbox, jobs=4)
    sandbox.clear_requests()
    arguments = [place[0], str(place[1])]
    ended = command.run(arguments, cwd=tmp_path, env=own_env, program=killed_import)
    assert ended.code == -signal.SIGKILL, ended.err.decode()
    taken = account_import.take(ft, "openai")
    assert taken.problems == {} and taken.inventory.data_here == 3
    runs = ft.store.runs.matching()
    assert sorted(str(run.job_id) for run in runs) == sorted(ids[:3]), "each job is one run"
    assert all(ft.run(run.id).metrics() and ft.run(run.id).checkpoints() for run in runs)
    contents = [e["path"] for e in sandbox.requests("openai") if e["path"].endswith("/content")]
    trained = [path for path in contents if "result" not in path]
    assert len(trained) == len(set(trained)), "no file is fetched twice"
    assert {e["method"] for e in sandbox.requests("openai")} == {"GET"}


def test_a_job_of_ours_is_not_a_second_run(ft: Orchestrator, sandbox: Sandbox, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    run = ft.submit(JobSpec(model="gpt-4o-mini", train=str(path), epochs=1), "openai")
    sandbox.skip(3600)
    assert account_import.take(ft, "openai").known == 1
    assert [r.id for r in ft.store.runs.matching()] == [run.id]


def test_recover_makes_an_imported_job_of_ours_count_as_if_it_had_not_been_imported(
    ft: Orchestrator, sandbox: Sandbox, tmp_path: Path
) -> None:
    """After the store was lost: whoever imports first still has the costs and the refusal of repeats."""
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(3))
    spec = JobSpec(model="gpt-4o-mini", train=str(path), epochs=1)
    ours = ft.submit(spec, "openai")
    made(sandbox)  # of others
    stores = [structs.replace(ft.settings, store_url=f"sqlite:///{tmp_path}/{name}.sqlite3") for name in "ab"]
    with Orchestrator(stores[0]) as imported, Orchestrator(stores[1]) as recovered:
        taken = account_import.take(imported, "openai")
        assert taken.imported > 1 and imported.run(ours.id).record.imported
        assert taken.unrecovered == account_import.take(imported, "openai").unrecovered == [ours.id]
        for one in (imported, recovered):
            assert recover(one.store, [one.provider("openai")]).recovered == [ours.id]
            with pytest.raises(AlreadySubmitted):
                one.submit(spec, "openai")
        assert recover(imported.store, [imported.provider("openai")]).recovered == []
        assert account_import.take(imported, "openai").unrecovered == []
        theirs, mine = (one.run(ours.id).record for one in (imported, recovered))
        assert not theirs.imported and charges(theirs) == charges(mine) != Spending()
        assert [run.id for run in imported.store.runs.matching() if not run.imported] == [ours.id]
        assert set(theirs.tags) == {"imported", "recovered"}


@pytest.mark.slow
def test_three_thousand_jobs_take_as_long_a_job_as_three_hundred(ft: Orchestrator, sandbox: Sandbox) -> None:
    client = openai(sandbox)
    file = uploaded(client, 0)
    body = {"model": "gpt-4o-mini-2024-07-18", "training_file": file}

    def seconds_a_job(jobs: int) -> float:
        sandbox.create_jobs("openai", [body] * jobs)
        sandbox.skip(3600)
        begun = time.process_time()  # what other programs take is not ours
        assert account_import.take(ft, "openai", details=False).imported == jobs
        return (time.process_time() - begun) / jobs

    few, many = seconds_a_job(300), seconds_a_job(2700)
    assert many < 4 * few
    runs = ft.store.runs.matching()
    assert len(runs) == len({run.job_id for run in runs}) == 3000
