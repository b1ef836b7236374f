"""What SkyPilot's place alone has, by our bridge and a stand-in of its client. The real client, its loader,
its optimizer and its API server are in `test_sky_outside`; what all places have, in `test_contract`."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.unit.places.worlds import RUNPOD, SkyState

from orchestrate.errors import HostUnavailable, InvalidRequest, OutcomeUnknown, SetupError, UsageError
from orchestrate.local import Hyper, LocalJob
from orchestrate.local.job import AdapterSettings, Supervised
from orchestrate.local.run import now
from orchestrate.places.base import Resources, WorkerLimits
from orchestrate.places.kinds._skypilot import Bridge, python_of
from orchestrate.places.kinds.sky import Sky
from orchestrate.places.manifest import environment, write_manifest
from orchestrate.places.storage import RunStorage

REF = "orc-0123456789ab"
H100 = Resources(gpu="H100", machine="H100:1", limits=WorkerLimits(max_hours=2, most_usd_per_hour=Decimal(3)))


@pytest.fixture
def state(tmp_path: Path) -> SkyState:
    (tmp_path / "env").mkdir()
    return SkyState(tmp_path / "env")


@pytest.fixture
def bridge(state: SkyState) -> Iterator[Bridge]:
    found = Bridge(str(state.python), answer_s=120)
    yield found
    found.close()


def place(bridge: Bridge, tmp_path: Path, **options: Any) -> Sky:
    given = {"depot": f"file://{tmp_path}/depot", "home": str(tmp_path), **options}
    return Sky("sky", given, bridge, settle_s=0)


def submit(found: Sky, tmp_path: Path, resources: Resources = H100, ref: str = REF) -> None:
    (tmp_path / "train.jsonl").write_text('{"messages": []}\n')
    job = LocalJob(
        ref=ref,
        model="someone/some-model",
        model_name="some-model",
        train=str(tmp_path / "train.jsonl"),
        method=Supervised(),
        adapter=AdapterSettings(type="lora", r=8),
        hyper=Hyper(epochs=1),
        created_at=now(),
    )
    depot = RunStorage(f"file://{tmp_path}/depot")
    order = write_manifest(depot, job, resources.limits)
    found.submit(order, resources, environment(depot, order))


def test_what_is_sent(
    state: SkyState, bridge: Bridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPOT_WORD", "only among them")
    found = place(bridge, tmp_path, infra="runpod", image="docker:some/image", disk_gb=200)
    found.options = {**found.options, "pass_env": ["DEPOT_WORD"]}
    submit(found, tmp_path, Resources(gpu="H100", spot=True, limits=H100.limits))
    [task] = state.get()["sent"]
    assert task["name"] == REF and task["resources"] == {
        "accelerators": {"H100": 1},
        "use_spot": True,
        "max_hourly_cost": 3.0,
        "infra": "runpod",
        "image_id": "docker:some/image",
        "disk_size": 200,
        "labels": {"orchestrate": "run", "orchestrate-ref": REF},
        "autostop": {"idle_minutes": 10, "down": True},
        "job_recovery": {"max_restarts_on_errors": 0},
    }
    assert "timeout --kill-after=60 7200 uv run" in task["run"]
    assert task["secrets"]["DEPOT_WORD"] == hashlib.sha256(b"only among them").hexdigest()
    assert "only among them" not in json.dumps(task) and task["envs"]["ORCHESTRATE_REF"] == REF


def test_prices_are_the_least_of_the_clouds_that_are_set_up(
    state: SkyState, bridge: Bridge, tmp_path: Path
) -> None:
    """By hand: an H100 at RunPod from $2.69, as spot from $2.10, and at Vast for $0.80."""
    found = place(bridge, tmp_path, infra="runpod")
    names = {one.name: one for one in found.machines()}
    assert list(names) == ["H100:1", "H100:2", "L40S:1"]
    # The catalog says 48 GiB, and CUDA has "a total capacity of 44.40 GiB".
    assert names["L40S:1"].spot is None and 44 * 2**30 < (names["L40S:1"].memory_bytes or 0) < 44.4 * 2**30
    dear, cheap = found.price(H100), found.price(Resources(gpu="H100", spot=True))
    assert dear and cheap and (dear.usd_per_hour, cheap.usd_per_hour) == (Decimal("2.69"), Decimal("2.1"))
    anywhere = place(bridge, tmp_path).price(H100)
    assert anywhere and anywhere.machine == "Vast US" and anywhere.source == "SkyPilot's catalog of Vast"
    with pytest.raises(UsageError, match="does not currently offer 1 x B200"):
        found.price(Resources(gpu="B200"))
    state.put(clouds=[])
    with pytest.raises(SetupError, match="no enabled cloud") as raised:
        found.price(H100)
    assert "sky check" in str(raised.value.fix)
    (tmp_path / "places" / "sky" / "machines.json").unlink()
    assert "L4:1" in {one.name for one in found.machines()}, "none is set up: what is rented most, unpriced"
    state.put(clouds=["RunPod"])
    assert [one.name for one in found.machines()] == ["H100:1", "H100:2", "L40S:1"], "and now one is"
    owned = place(bridge, tmp_path, infra="slurm/lab", gpu="A100", usd_per_hour=0)
    assert [one.gpu for one in owned.machines()] == ["A100"] and owned.price(H100).usd_per_hour == 0  # type: ignore[union-attr]


def test_the_price_after_the_start_is_the_clouds_own_word(
    state: SkyState, bridge: Bridge, tmp_path: Path
) -> None:
    """Vast's catalog has $0.80 for what the machine that came costs $2.22."""
    found = place(bridge, tmp_path)
    submit(found, tmp_path)
    assert found.paid(REF) is None, "it has not started"
    there = {"status": "RUNNING", "cluster_name_on_cloud": "orc-0123-7", "accelerators": {"H100": 1}}
    state.newest(**there, cloud="Vast", region="US", resources="1x[H100:1]")
    state.put(vast=[{"label": "other", "dph_total": 9.0}, {"label": "orc-0123-7-head", "dph_total": 2.22}])
    told = found.paid(REF)
    assert told and told.usd_per_hour == Decimal("2.22") and "price reported by" in told.source
    more = {"label": "orc-0123-7-worker", "dph_total": 2.0}
    others = [{"label": f"orc-0123-7{end}", "dph_total": 9.0} for end in ("1-head", "-header", "")]
    state.put(vast=[{"label": "orc-0123-7-head", "dph_total": 2.5}, more, more, *others])
    told = found.paid(REF)
    assert told and told.usd_per_hour == Decimal("6.5"), "of this cluster's machines only"
    state.put(vast=[*others, {"label": None, "dph_total": 9.0}])
    told = found.paid(REF)
    assert told and told.usd_per_hour == Decimal("0.8") and "catalog" in told.source
    state.newest(**RUNPOD | {"region": "EU"}, resources="1x[H100:1][Spot]")
    told = found.paid(REF)
    assert told and told.usd_per_hour == Decimal("2.3")


def test_a_request_that_goes_on_is_no_absence(state: SkyState, bridge: Bridge, tmp_path: Path) -> None:
    """Its job may come minutes later: the API server starts a controller first."""
    found = place(bridge, tmp_path)
    state.put(faults=["slow"])
    submit(found, tmp_path)
    [waiting] = found.find(REF)
    assert (waiting.state, waiting.raw_state) == ("waiting", "REQUEST_RUNNING") and not state.get()["jobs"]
    found.stop(REF)
    [withdrawn] = found.find(REF)
    assert withdrawn.state == "ended"


@pytest.mark.parametrize(("fault", "raised"), [("503 after", OutcomeUnknown), ("down", HostUnavailable)])
def test_how_an_answer_is_lost(
    fault: str, raised: type[Exception], state: SkyState, bridge: Bridge, tmp_path: Path
) -> None:
    state.put(faults=[fault])
    with pytest.raises(raised):
        submit(place(bridge, tmp_path), tmp_path)


def test_a_refusal_says_why_and_leaves_no_job_behind(state: SkyState, bridge: Bridge, tmp_path: Path) -> None:
    state.put(faults=["refused"])
    found = place(bridge, tmp_path)
    with pytest.raises(InvalidRequest, match="Catalog does not contain"):
        submit(found, tmp_path)
    submit(found, tmp_path)
    state.newest(status="PENDING", schedule_state="INACTIVE")
    [stuck, refused] = found.find(REF)
    assert (stuck.raw_state, stuck.state) == ("NEVER_SCHEDULED", "ended") and refused.state == "ended"


def test_a_forgotten_attempt_does_not_pass_its_name_on(
    state: SkyState, bridge: Bridge, tmp_path: Path
) -> None:
    """The server deletes old requests. The second attempt's job, which has ended, is not the third's."""
    found = place(bridge, tmp_path)
    state.put(faults=["refused"])
    with pytest.raises(InvalidRequest):
        submit(found, tmp_path)
    submit(found, tmp_path)
    state.newest(status="FAILED", failure_reason="out of memory")
    state.put(requests=[])
    submit(found, tmp_path)
    assert [task["name"] for task in state.get()["sent"]] == [REF, f"{REF}-2", f"{REF}-3"]


def test_a_client_that_dies_leaves_the_outcome_open(tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\nread line\nexit 3\n")
    dying.chmod(dying.stat().st_mode | stat.S_IXUSR)
    found = place(Bridge(str(dying)), tmp_path)
    with pytest.raises(HostUnavailable, match="client ended"):
        found.find(REF)
    hanging = tmp_path / "hanging"
    hanging.write_text("#!/bin/sh\nexec sleep 600\n")
    hanging.chmod(hanging.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(HostUnavailable, match="did not answer"):
        place(Bridge(str(hanging), answer_s=0.2), tmp_path).find(REF)


def test_without_skypilot_the_steps_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        SetupError,
        match="SkyPilot is not installed",
    ) as raised:
        Sky("sky", {"depot": f"file://{tmp_path}/depot"}).require()
    assert "uv tool install" in str(raised.value.fix) and "options.python" in str(raised.value.fix)
    (tmp_path / "sky").write_text("#!/opt/sky/bin/python3.11\nimport sky\n")
    (tmp_path / "sky").chmod(0o755)
    assert python_of() == "/opt/sky/bin/python3.11"
    with pytest.raises(SetupError, match="cannot run SkyPilot"):
        Sky("sky", {"python": "/nowhere/python", "depot": f"file://{tmp_path}/depot"}).find(REF)


@pytest.mark.parametrize("clouds", [[], ["Vast"], ["RunPod"]])
def test_a_look_starts_no_server_and_says_which_cloud_is_missing(
    clouds: list[str], state: SkyState, bridge: Bridge, tmp_path: Path
) -> None:
    state.put(server=False, clouds=clouds)
    found = place(bridge, tmp_path, infra="runpod", python=str(state.python))
    if clouds == ["RunPod"]:
        found.require()
        assert "H100:1" in [machine.name for machine in found.machines()]
        assert found.price(H100).usd_per_hour == Decimal("2.69")
    else:
        with pytest.raises(SetupError, match="no enabled cloud at runpod") as missing:
            found.require()
        assert "sky check" in str(missing.value.fix)
    assert not state.get()["server"]
