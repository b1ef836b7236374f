"""What a budget counts for a run that was taken over from a host: the host's figure, its rule, or the high
end of a quote of its data. The hosts here are scripted after the published descriptions, and the figures are
computed by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.faults.shop import Shop
from tests.faults.world import HOSTED, World
from tests.scripted_host import Answer, Host, scripted_host

from orchestrate.costing import accuracy, bill_run
from orchestrate.providers import registry
from orchestrate.runs.syncing.recovery import Recovery, recover, recovered_cost
from orchestrate.settings import config
from orchestrate.store.store import Store
from orchestrate.types import Run

MINI = "gpt-4.1-mini-2025-04-14"  # $5 per million training tokens, shared/facts/prices.json
LLAMA = "meta-llama/Meta-Llama-3.1-8B-Instruct-Reference"
RIGHT = {"openai-organization": "org-1", "openai-project": "proj-1"}


@pytest.fixture
def host() -> Iterator[Host]:
    with scripted_host() as running:
        yield running


def recovered(host: Host, name: str, folder: Path) -> tuple[Run, Recovery, Decimal]:
    """The one run, what was said, and what the budget counts."""
    base = f"{host.url}/v1" if name == "openai" else host.url
    env = {f"{name.upper()}_API_KEY": "a-key-of-a-real-host", f"{name.upper()}_BASE_URL": base}
    env |= {"FIREWORKS_ACCOUNT_ID": "acme", "ORCHESTRATE_KEYS": str(folder / "keys.toml")}
    provider = registry.make(name, config.load(env=env, cwd=folder, home=folder))
    try:
        with Store.open(f"sqlite:///{folder}/runs.sqlite3") as store:
            report = recover(store, [provider])
            money = store.ledger.spending()
            return store.runs.get("last"), report, money.spent_usd + money.committed_usd
    finally:
        provider.close()


def openai_job(status: str, **more: Any) -> dict[str, Any]:
    job = {
        "object": "fine_tuning.job", "id": "ftjob-1", "model": MINI, "status": status,
        "created_at": 1_795_000_000, "organization_id": "org-1", "training_file": "file-1",
        "validation_file": None, "result_files": [], "trained_tokens": None, "fine_tuned_model": None,
        "hyperparameters": {"n_epochs": 3, "batch_size": 1, "learning_rate_multiplier": 1.8},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3}}},
        "metadata": {"orchestrate_ref": "orc-1qrn0nq0kvxa"}, "error": None, "finished_at": None, "seed": 1,
    }  # fmt: skip
    return job | more


AUTO: dict[str, Any] = {
    "hyperparameters": {"n_epochs": "auto"},
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": "auto"}}},
}
FAILED = {"code": "invalid_training_file", "message": "no", "param": "training_file"}


@pytest.mark.parametrize(
    ("job", "usd", "words"),
    [
        # 400,000 bytes are at most 200,000 tokens: x 3 epochs x $5.
        (openai_job("running"), "3", "up to $3.00: the high end of the quote for its data, 400,000 bytes"),
        # "auto" comes to at most 10 epochs, of the 10 rows that a file must have.
        (openai_job("queued", **AUTO), "10", "up to $10.00: the high end"),
        (openai_job("cancelled", finished_at=1_795_000_900), "3", "up to $3.00: the high end"),
        (
            openai_job("failed", error=FAILED),
            "0",
            "$0.00: the host does not bill for this kind of failure",
        ),
        (openai_job("succeeded", trained_tokens=1_000_000), "5", "$5.00: trained_tokens x rate"),
    ],
)
def test_what_is_counted_and_by_what(
    host: Host, tmp_path: Path, job: dict[str, Any], usd: str, words: str
) -> None:
    host.on("GET", "/v1/fine_tuning/jobs", {"object": "list", "data": [job], "has_more": False})
    host.on("GET", "/v1/files/file-1", {"object": "file", "id": "file-1", "bytes": 400_000})
    run, report, counted = recovered(host, "openai", tmp_path)
    assert (counted, report.unpriced) == (Decimal(usd), [])
    assert report.counted[run.id].startswith(words)
    assert len(host.calls("GET", "/v1/files/file-1")) == (job["trained_tokens"] is None)
    assert list(accuracy([run])) == [], "nobody quoted that: it says nothing of how good quotes are"


@pytest.mark.parametrize("answer", [Answer({"error": {"message": "gone"}}, 404), {"id": "file-1"}])
def test_what_cannot_be_counted_is_named_with_the_reason(host: Host, tmp_path: Path, answer: Any) -> None:
    host.on(
        "GET", "/v1/fine_tuning/jobs", {"object": "list", "data": [openai_job("running")], "has_more": False}
    )
    host.on("GET", "/v1/files/file-1", answer)
    run, report, counted = recovered(host, "openai", tmp_path)
    assert (counted, report.unpriced, report.counted) == (Decimal(0), [run.id], {})
    assert "data" in report.reasons[run.id]


def test_the_settings_that_the_host_reports_are_kept(host: Host, tmp_path: Path) -> None:
    """`migrate` and `rerun` would train with others."""
    method = {"type": "dpo", "dpo": {"hyperparameters": {"n_epochs": 2, "beta": 0.3}}}
    job = openai_job("succeeded", trained_tokens=1_000_000, method=method, hyperparameters={"n_epochs": 2})
    host.on("GET", "/v1/fine_tuning/jobs", {"object": "list", "data": [job], "has_more": False})
    run, _, _ = recovered(host, "openai", tmp_path)
    assert run.spec["method"] == {"type": "dpo", "beta": 0.3}
    assert (run.spec["epochs"], run.spec["seed"]) == (2, 1)


def test_a_method_that_costs_more_is_not_forgotten(host: Host, tmp_path: Path) -> None:
    """Together: 8 million bytes are at most 4 million tokens; a DPO token costs more than one of SFT."""
    job: dict[str, Any] = {
        "id": "ft-1", "status": "running", "model": LLAMA, "created_at": "2026-11-20T10:00:00Z",
        "updated_at": "2026-11-20T10:00:00Z", "training_file": "file-1", "n_epochs": 2, "n_evals": 0,
        "suffix": "orc-1qrn0nq0kvxa", "user_id": "u", "packing": True,
        "training_type": {"type": "Lora", "lora_r": 8, "lora_alpha": 16},
    }  # fmt: skip
    held: dict[str, Decimal] = {}
    for method in ("sft", "dpo"):
        job["training_method"] = {"method": method}
        host.on("GET", "/v1/fine-tunes", {"data": [job]})
        host.on("GET", "/v1/files/file-1", {"id": "file-1", "bytes": 8_000_000, "object": "file"})
        folder = tmp_path / method
        folder.mkdir()
        run, report, held[method] = recovered(host, "together", folder)
        assert report.unpriced == [] and run.spec.get("method", {"type": "sft"})["type"] == method
    assert held["sft"] >= 4 * 2 * Decimal("0.34") and held["dpo"] >= 4 * 2 * Decimal(
        "0.84"
    )  # facts/prices.json
    job |= {"status": "cancelled", "training_method": {"method": "sft"}}
    job |= {"steps_completed": 5, "total_steps": 10}
    host.on("GET", "/v1/fine-tunes", {"data": [job]})
    run, report, counted = recovered(host, "together", _made(tmp_path / "half"))
    assert report.counted[run.id].endswith("5 of 10 steps x the high end of a quote")
    quoted = sum((line.usd_high for line in run.quote.lines if line.unit == "usd_per_mtok"), Decimal(0))  # type: ignore[union-attr]
    assert counted == quoted / 2


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", HOSTED)
def test_the_share_that_is_held_covers_what_the_job_will_cost(world: World, name: str) -> None:
    """Against the sandbox, which bills by the host's rules; the judge is its final bill."""
    world.submit(name)
    provider, run = world.provider(name), world.store.runs.get("last")
    [job] = [job for job in provider.list() if job.handle.job_id == run.job_id]
    # As where the host tells no price before the end.
    silent = msgspec.structs.replace(job, cost_usd=None, trained_tokens=None)
    worth = recovered_cost(provider, silent)
    assert worth.quote is not None and worth.quote.recovered and worth.bill is None, worth.reason
    assert worth.quote.to_dict()["recalled"] is True, "stores have it by this name"
    world.hosts.skip(100_000)
    job = provider.get(run.handle)
    final = job.cost_usd
    if final is None:
        bill = bill_run(run, job, profile=provider.profile)
        assert bill is not None
        final = bill.usd
    assert 0 < final <= worth.quote.high_usd


def test_the_command_says_how_each_run_is_counted(shop: Shop) -> None:
    run = shop.ft.submit(shop.spec, "openai")
    shop.ft.store.close()
    for file in shop.settings.home.glob("runs.sqlite3*"):
        file.unlink()
    done = shop.type("recover", "--all", "-p", "openai")
    assert done.exit_code == 0, done.output
    assert re.search(rf"{run.id} counts (up to )?\$[0-9.]+: ", done.output)
