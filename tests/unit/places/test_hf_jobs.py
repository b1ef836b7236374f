"""Hugging Face Jobs by its own client, unmodified, against a stand-in that speaks its HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from tests.paths import ROOT
from tests.unit.places import hub as hubs
from tests.unit.places.depots import S3
from tests.unit.places.hub import TOKEN, Hub
from tests.unit.places.sent import REF, killed_and_brought_home, spec, submit

from orchestrate.commands.terminal.options import SpecOptions
from orchestrate.costing import built_in
from orchestrate.data import TrainingData
from orchestrate.errors import AuthenticationFailed, InvalidRequest, OutcomeUnknown, OverBudget, UsageError
from orchestrate.local.plan import throughput
from orchestrate.local.plan.throughput import MeasuredPace, ThroughputKey
from orchestrate.local.run import JobState, RunDir, now
from orchestrate.places.base import Resources
from orchestrate.places.kinds.hf_jobs import FLAVORS, LABEL, STAGES, HfJobs
from orchestrate.places.manifest import pins
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.types import JobStatus, Severity

pytestmark = pytest.mark.slow  # a place's own client; what all places have in common is in the fast half


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Jobs are made, and nothing is run."""
    (tmp_path / "hub").mkdir()
    with hubs.running(tmp_path / "hub", run=False) as found:
        yield found


def provider(hub: Hub, tmp_path: Path, depot: str | None = None, token: str = TOKEN) -> AwayProvider:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "orchestrate.toml").write_text(
        f'[hosts.hf-jobs.options]\ndepot = "{depot or f"file://{tmp_path}/depot"}"\n'
    )
    found = registry.make(
        "hf-jobs", config.load(env={}, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "home")
    )
    assert isinstance(found, AwayProvider)
    found.place = HfJobs("hf-jobs", found.config.options, lambda: HfApi(endpoint=hub.url, token=token))
    return found


def test_what_is_sent(hub: Hub, rows: Path, tmp_path: Path) -> None:
    found = provider(hub, tmp_path)
    handle = submit(found, spec(rows, max_cost_usd=10, provider_options={"hf-jobs": {"gpu": "L4"}}))
    assert handle.provider == "hf-jobs" and handle.job_id == REF
    [sent] = hub.sent
    assert sent["flavor"] == "l4x1" and sent["labels"][LABEL] == REF
    assert sent["timeoutSeconds"] == pytest.approx(10 / Decimal("0.79998") * 3600, abs=1)
    assert sent["secrets"]["HF_TOKEN"] == TOKEN
    assert TOKEN not in json.dumps(sent["environment"]) + json.dumps(sent["command"])
    with_ = [sent["command"][i + 1] for i, word in enumerate(sent["command"]) if word == "--with"]
    assert {"torch", "transformers", "peft", "fsspec"} <= {pin.partition("==")[0] for pin in with_}
    assert all("==" in pin and "+" not in pin for pin in with_) and with_ == pins("local", more=("fsspec",))
    assert b"L4" in (tmp_path / "home" / "places" / "hf-jobs" / "runs" / REF / "job.json").read_bytes()


def test_our_words_are_the_clients() -> None:
    from huggingface_hub import JobHardware, JobStage

    assert {stage.value for stage in JobStage} == set(STAGES)
    assert {flavor for flavor, _ in FLAVORS.values()} <= {one.value for one in JobHardware}


@pytest.mark.parametrize("fault", ["garbled", "408 after"])
def test_an_answer_that_says_nothing_is_no_refusal(fault: str, hub: Hub, rows: Path, tmp_path: Path) -> None:
    found, asked = provider(hub, tmp_path), spec(rows)
    hub.faults = [fault]
    with pytest.raises(OutcomeUnknown):
        submit(found, asked)
    assert submit(found, asked).job_id == REF and len(hub.jobs) == 1


@pytest.mark.slow
def test_a_refusal_is_certain_and_another_ref_is_another_job(hub: Hub, rows: Path, tmp_path: Path) -> None:
    found, asked = provider(hub, tmp_path), spec(rows)
    hub.faults = ["refused"]
    with pytest.raises(InvalidRequest, match="no such flavor"):
        submit(found, asked)
    assert not hub.jobs
    refs = [f"orc-00000000000{n}" for n in range(5)]
    for ref in refs:
        submit(found, asked, ref)
    assert [found.find(ref)[0].ref for ref in refs] == refs
    assert {item.name for item in found.billing().items} == set(refs), "page by page"
    with pytest.raises(AuthenticationFailed):
        provider(hub, tmp_path, token="hf_wrong").place.find(REF)


def test_the_price_is_read_again_before_a_job_is_made(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """What its page said once is what a quote has; a cap holds against the list as it is now."""
    found = provider(hub, tmp_path)
    asked = spec(rows, provider_options={"hf-jobs": {"gpu": "H200", "max_usd_per_hour": 4.99}})
    with pytest.raises(OverBudget, match=r"\$5"):
        submit(found, asked)
    assert not hub.sent


def test_the_bill_is_the_hosts_durations_at_its_price(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """By hand: 61 and 3,599 seconds of an A100 are 2 and 60 minutes at $2.50002 per hour."""
    found = provider(hub, tmp_path)
    handle = submit(found, spec(rows, provider_options={"hf-jobs": {"gpu": "A100"}}))
    [first] = hub.jobs
    hub.end(first, "ERROR", "the machine died", ran_s=61)
    assert found.get(handle).status is JobStatus.PAUSED and found.recover(handle)
    second = next(id for id in hub.jobs if id != first)
    hub.end(second, "COMPLETED", ran_s=3599)
    used = found.place.usage(handle.job_id)
    assert used is not None and used.usd == Decimal("2.50002") * 62 / 60 and "run times" in used.source
    job = found.get(handle)
    assert job.cost_usd is None, "it goes on: no figure of the whole job"
    assert job.payload["used_seconds"] == 3660


def test_the_cheapest_gpu_on_which_it_fits_is_taken(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """Qwen3 8B with QLoRA needs about 10 GB, and 70B in four bits more than any 24 GB card."""
    found = provider(hub, tmp_path)
    small = {row.name: row for row in found.translate(spec(rows, model="qwen3-8b", adapter="qlora")).settings}
    large = {
        row.name: row for row in found.translate(spec(rows, model="llama-3.3-70b", adapter="qlora")).settings
    }
    assert small["provider_options.gpu"].sent in ("L4", "L40S", "A100", "H200")
    assert large["provider_options.gpu"].sent in ("A100", "RTX PRO 6000", "H200")
    full = found.translate(spec(rows, model="llama-3.3-70b", adapter="full"))
    [refused] = full.refused
    assert refused.name == "provider_options.gpu" and "no GPU here has that much" in str(refused.rule)
    old = found.translate(spec(rows, provider_options={"hf-jobs": {"gpu": "T4"}}))
    [precision] = [row for row in old.settings if row.name == "provider_options.precision"]
    assert (precision.sent, old.body["precision"]) == ("fp16", "fp16") and "7.5" in str(precision.rule)
    two = found.translate(spec(rows, provider_options={"hf-jobs": {"gpu": "H200:2"}}))
    assert [row.name for row in two.refused] == ["provider_options.gpu"]


def test_what_runs_measured_decides_which_gpu_is_the_cheapest(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """By hand, for a million tokens: an H200 at $5 is taken to do 12,195 in a second, $0.11; an L40S at $1.80
    3,659, $0.14. With the 2,000 that runs measured the H200 costs $0.69."""
    found, asked = provider(hub, tmp_path), spec(rows, model="qwen3-8b", adapter="qlora")

    def chosen() -> str:
        [row] = [one for one in found.translate(asked).settings if one.name == "provider_options.gpu"]
        return str(row.sent)

    assert chosen() == "H200"
    kind = ThroughputKey(device="H200", threads=1, parameters=8.2e9, precision="bf16")
    found.home.mkdir(parents=True)
    for _ in range(3):
        pace = MeasuredPace(kind=kind, at=now(), tokens=2e6, seconds=1000.0, besides_seconds=60.0)
        throughput.add(throughput.file_of(found.home), pace)
    assert chosen() == "L40S"


def test_a_quote_has_the_source_and_the_age_of_its_price(hub: Hub, rows: Path, tmp_path: Path) -> None:
    found = provider(hub, tmp_path)
    asked = spec(rows, model="qwen3-8b", provider_options={"hf-jobs": {"gpu": "A100"}})
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    quote = found.quote(asked, data, found.translate(asked), built_in())
    [line] = quote.lines
    assert line.usd_per_unit == Decimal("2.5") and line.as_of == "2026-11-25" and "hub-docs" in line.source
    assert quote.low_usd < quote.expected_usd < quote.high_usd
    found.place.price(Resources(gpu="A100", machine="a100-large"))
    [line] = found.quote(asked, data, found.translate(asked), built_in()).lines
    assert line.usd_per_unit == Decimal("2.50002") and "list of machines" in line.source
    assert [p for p in found.check(asked, data, found.translate(asked)) if p.severity is Severity.ERROR] == []


def test_a_command_asks_for_a_machine_at_places_alone(rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(f"model: qwen3-8b\ntrain: {rows}\n")
    asked = SpecOptions(spec=file, gpu="L4", max_hours=2.0)
    assert asked.read("together,hf-jobs").provider_options == {"hf-jobs": {"gpu": "L4", "max_hours": 2.0}}
    with pytest.raises(UsageError, match="--gpu only applies to remote machines"):
        asked.read("together,local")
    assert SpecOptions(spec=file).read("all").provider_options == {}


def test_a_copy_that_is_gone_is_made_again_from_the_depot(hub: Hub, rows: Path, tmp_path: Path) -> None:
    found = provider(hub, tmp_path)
    handle = submit(found, spec(rows))
    state = JobState(status="running", step=3, total_steps=9, updated_at=now(), attempt=1)
    found.place.run_storage.run(REF).write("status.json", state.to_json())
    run = RunDir(found.home / "runs" / REF)
    for path in sorted(run.path.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    run.path.rmdir()
    assert found.get(handle).step == 3 and RunDir(run.path).job().ref == REF


@pytest.mark.slow
def test_by_the_commands_alone(hub: Hub, rows: Path, tmp_path: Path) -> None:
    """The answer to a submit is lost, and it finds the job that was made."""
    (tmp_path / "o.toml").write_text(f'[hosts.hf-jobs.options]\ndepot = "file://{tmp_path}/depot"\n')
    (tmp_path / "spec.yaml").write_text(f"model: qwen3-8b\ntrain: {rows}\nadapter: qlora\n")
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT / "src")}
    env |= {"ORCHESTRATE_HOME": str(tmp_path / "home"), "ORCHESTRATE_CONFIG": str(tmp_path / "o.toml")}
    env |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "orchestrate.cli", *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    for word in ("check", "plan", "quote"):
        done = run(word, "spec.yaml", "--provider", "hf-jobs")
        assert done.returncode == 0, done.stdout + done.stderr
    hub.faults = ["lost"]
    done = run("submit", "spec.yaml", "--provider", "hf-jobs", "--max-cost", "5")
    assert done.returncode == 0 and len(hub.jobs) == 1, done.stdout + done.stderr
    assert run("sync").returncode == 0
    [told] = json.loads(run("runs", "--json").stdout)
    assert (told["status"], told["provider"]) == ("queued", "hf-jobs") and len(hub.jobs) == 1
    [job] = hub.jobs.values()
    assert job["labels"][LABEL] == told["ref"] and told["ref"] in run("spending").stdout
    assert run("cancel", told["id"]).returncode == 0 and job["status"]["stage"] == "CANCELED"


@pytest.mark.slow
def test_trained_over_there_killed_and_brought_home(s3: S3, rows: Path, tmp_path: Path) -> None:
    """The real engine in processes that have the job's environment alone, its depot S3; its machine dies on
    the way."""
    (tmp_path / "hub").mkdir()
    with hubs.running(tmp_path / "hub") as hub:
        found = provider(hub, tmp_path, depot=f"s3://runs/{tmp_path.name}")
        found.place.price(Resources(machine="cpu-basic"))
        options = {"gpu": "none", "recovery_seconds": 0, "threads": 1}
        asked = spec(rows, epochs=4, batch_size=2, seed=1, provider_options={"hf-jobs": options})
        killed_and_brought_home(found, asked, hub, tmp_path)


def test_a_gpu_has_the_memory_that_cuda_gives_whatever_the_list_rounds_it_to(
    hub: Hub, tmp_path: Path
) -> None:
    """The sizes are CUDA's own ("GPU 0 has a total capacity of ..."), in GiB."""
    place = provider(hub, tmp_path).place
    capacity = {"t4-small": 14.56, "l4x1": 22.03, "a100-large": 79.1, "h200": 139.7, "h200x8": 139.7}

    def sizes() -> dict[str, float]:
        listed = {one.name: one.memory_bytes for one in place.machines() if one.memory_bytes}
        return {name: round(size / 2**30, 2) for name, size in listed.items() if name in capacity}

    before = sizes()
    place.price(Resources(machine="h200"))  # which reads the host's list
    assert before == {name: capacity[name] for name in before} and "a100-large" in before
    assert sizes() == capacity


def test_a_device_is_that_of_the_machine(rows: Path, hub: Hub, tmp_path: Path) -> None:
    """A machine without a GPU is had once the host's list was read; until then, and beside a GPU, it is
    refused."""
    found = provider(hub, tmp_path)
    cpu = {"device": "cpu"}

    def asks(options: dict[str, Any]) -> JobSpec:
        return spec(rows, provider_options={"hf-jobs": options})

    assert [row.name for row in found.translate(asks(cpu)).refused] == ["provider_options.gpu"]
    found.place.price(Resources(machine="h200"))
    for asked in (cpu, {"gpu": "none"}, {"gpu": "none", **cpu}):
        plan = found.translate(asks(asked))
        assert not plan.refused
        assert (plan.body["device"], plan.body["resources"]["machine"]) == ("cpu", "cpu-basic")
    for asked in ({"gpu": "H200", **cpu}, {"gpu": "none", "device": "cuda"}, {"device": "tpu"}):
        assert [row.name for row in found.translate(asks(asked)).refused] == ["provider_options.device"]
    gpu = found.translate(asks({"gpu": "H200", "device": "cuda"}))
    assert not gpu.refused and gpu.body["device"] == "cuda"
