"""SkyPilot's own loader, optimizer, client and API server, unmodified, on catalogs of a fixture. Between
client and server a proxy loses answers.

No cloud is reached: the server takes jobs, chooses a machine for them, and cannot start it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from decimal import Decimal
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from tests.http_server import Handler, Running
from tests.outside import program
from tests.ports import own_port
from tests.unit.places.test_sky import H100, REF, submit

from orchestrate.errors import OutcomeUnknown
from orchestrate.places.base import Resources, WorkerLimits
from orchestrate.places.kinds._skypilot import Bridge
from orchestrate.places.kinds.sky import STATES, Sky

pytestmark = [pytest.mark.outside, pytest.mark.slow]

CATALOG = [
    ("1x_H100_SECURE", "H100", 1, 80, 2.69, 2.10),
    ("2x_H100_SECURE", "H100", 2, 80, 5.38, 4.20),
    ("1x_L40S_SECURE", "L40S", 1, 48, 0.86, 0.40),
]
"""Of RunPod, in one region: instance, GPU, how many, GiB of each, price, price as spot."""
HEADER = (
    "InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,Region,SpotPrice,Price,"
    "AvailabilityZone,GpuInfo"
)


def home(folder: Path) -> dict[str, str]:
    """The environment of programs whose SkyPilot has one cloud, and its controller in the API server."""
    there = folder / "sky-home"
    catalogs = there / ".sky" / "catalogs" / "v8"
    for name in ("common", "runpod"):
        (catalogs / name).mkdir(parents=True)
    (catalogs / "common" / "accelerators.csv").write_text(
        "AcceleratorName,AcceleratorManufacturer,Clouds\nH100,NVIDIA,RunPod\nL40S,NVIDIA,RunPod\n"
    )
    lines = [HEADER]
    for instance, gpu, count, gigabytes, price, spot in CATALOG:
        card = {"Name": gpu, "Count": float(count), "MemoryInfo": {"SizeInMiB": gigabytes * 1024}}
        info = {"Gpus": [card], "TotalGpuMemoryInMiB": gigabytes * 1024 * count}
        lines.append(f'{instance},{gpu},{count}.0,16.0,128.0,US,{spot},{price},US-KS-2,"{info}"')
    (catalogs / "runpod" / "vms.csv").write_text("\n".join(lines) + "\n")
    (there / ".sky" / "config.yaml").write_text("jobs:\n  controller:\n    consolidation_mode: true\n")
    tools = there / "bin"
    tools.mkdir()
    copy = 'for last; do before=$this; this=$last; done\ncp -r "$before" "$this"\n'
    (tools / "rsync").write_text(f"#!/bin/sh\n{copy}")
    (tools / "rsync").chmod(0o755)
    keep = {name: os.environ[name] for name in ("LANG", "TMPDIR") if name in os.environ}
    return keep | {
        "HOME": str(there),
        "PATH": f"{tools}:{Path(program('sky')).parent}:/usr/local/bin:/usr/bin:/bin",
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
    }


def python(env: dict[str, str], code: str, given: Any = None) -> Any:
    done = subprocess.run(
        [program("sky"), "-c", ENABLE + code, json.dumps(given)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


ENABLE = """
import json, sys
from sky import check, global_user_state
from sky.clouds import cloud
allowed = check._get_workspace_allowed_clouds("default")
global_user_state.set_allowed_clouds(allowed, "default")
global_user_state.set_enabled_clouds(["RunPod"], cloud.CloudCapability.COMPUTE, "default")
"""
OPTIMISE = """
import sky
from sky import exceptions, optimizer
found = []
for config in json.loads(sys.argv[1]):
    task = sky.Task.from_yaml_config(config)
    assert sky.Task.from_yaml_config(task.to_yaml_config()).to_yaml_config() == task.to_yaml_config()
    with sky.Dag() as dag:
        dag.add(task)
    try:
        optimizer.Optimizer.optimize(dag, quiet=True)
        best = task.best_resources
        found.append([best.instance_type, best.use_spot, best.get_cost(3600)])
    except exceptions.ResourcesUnavailableError as error:
        found.append(str(error))
print(json.dumps(found))
"""
WORDS = """
from sky.jobs.state import ManagedJobStatus
from sky.server.requests.requests import RequestStatus
print(json.dumps([[one.value for one in ManagedJobStatus], [one.value for one in RequestStatus]]))
"""


def test_its_loader_reads_our_task_and_its_optimizer_takes_the_machine(tmp_path: Path) -> None:
    """As spot for $2.10, else for $2.69, and none for $2.50 at most."""
    env = home(tmp_path)
    place = Sky("sky", {"depot": f"file://{tmp_path}/depot"})
    asked = [
        Resources(gpu="H100", spot=True, limits=H100.limits),
        H100,
        Resources(gpu="H100", limits=WorkerLimits(most_usd_per_hour=Decimal("2.5"))),
    ]
    tasks = [place.task(REF, REF, one, {"ORCHESTRATE_REF": REF}) for one in asked]
    spot, plain, none = python(env, OPTIMISE, tasks)
    assert spot == ["1x_H100_SECURE", True, 2.1] and plain == ["1x_H100_SECURE", False, 2.69]
    assert "does not contain any instances" in none


def test_our_words_are_its(tmp_path: Path) -> None:
    jobs, requests = python(home(tmp_path), WORDS)
    ours = {word for word in STATES if not word.startswith("REQUEST_")} - {"NEVER_SCHEDULED"}
    assert set(jobs) == ours
    assert {f"REQUEST_{word}" for word in requests} - set(STATES) == {"REQUEST_SUCCEEDED"}


class Server:
    """The real one, and the proxy before it. `faults` are taken one by one by requests that make jobs."""

    def __init__(self, folder: Path) -> None:
        self.env, self.folder, self.faults = home(folder), folder, list[str]()
        python(self.env, "print(json.dumps(None))")
        self.port = own_port()
        # Or its own controllers would look for it at its usual port, and start another over its books.
        self.env["SKYPILOT_API_SERVER_ENDPOINT"] = f"http://127.0.0.1:{self.port}"
        self.start()
        self.proxy = Running(_Proxy, server_of=self)
        wrapper = folder / "python"
        del (own := dict(self.env))["SKYPILOT_API_SERVER_ENDPOINT"]
        words = " ".join(f'{name}="{value}"' for name, value in own.items())
        words += ' SKYPILOT_API_SERVER_ENDPOINT="$SKYPILOT_API_SERVER_ENDPOINT"'
        wrapper.write_text(f'#!/bin/sh\nexec env -i {words} "{program("sky")}" "$@"\n')
        wrapper.chmod(0o755)
        self.bridge = Bridge(str(wrapper), self.proxy.url, answer_s=240)

    def start(self) -> None:
        command = [program("sky"), "-m", "sky.server.server", "--host=127.0.0.1", f"--port={self.port}"]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        deadline = time.monotonic() + 240
        while not self._answers():
            assert time.monotonic() < deadline and self.process.poll() is None, (
                self.folder / "server.log"
            ).read_text()[-3000:]
            time.sleep(0.5)

    def _answers(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            connection.request("GET", "/api/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def kill(self) -> None:
        """With the processes of its session, and those that it put into sessions of their own."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    mine = f"HOME={self.env['HOME']}\0".encode() in (entry / "environ").read_bytes()
                except OSError:
                    continue
                if mine and int(entry.name) != os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.bridge.close()
        self.proxy.close()
        self.kill()


class _Proxy(Handler):
    server_of: Server

    def _pass(self) -> None:
        body = self.body()
        fault = ""
        if self.path.startswith("/jobs/launch") and self.server_of.faults:
            fault = self.server_of.faults.pop(0)
        if fault == "lost before":
            self.close_connection = True
            return
        if fault == "500 before":
            self._answer(500, {}, b"internal")
            return
        if fault == "503 before":
            self._answer(503, {}, b'{"detail": "no ready backend"}')
            return
        connection = HTTPConnection("127.0.0.1", self.server_of.port, timeout=240)
        try:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            data = answer.read()
        except OSError:
            self.close_connection = True
            return
        finally:
            connection.close()
        if fault == "lost":
            self.close_connection = True
        elif fault.startswith("50"):
            self._answer(int(fault[:3]), {}, b"{}")
        else:
            self._answer(answer.status, dict(answer.getheaders()), data)

    do_GET = do_POST = do_HEAD = do_PUT = _pass

    def _answer(self, status: int, headers: dict[str, str], data: bytes) -> None:
        own = ("transfer-encoding", "content-length", "connection", "date", "server")
        self.answer(status, data, {n: value for n, value in headers.items() if n.lower() not in own})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("sky"))
    yield found
    found.close()


def place(server: Server, tmp_path: Path) -> Sky:
    options = {"depot": f"file://{tmp_path}/depot", "home": str(tmp_path)}
    return Sky("sky", options, server.bridge, settle_s=60)


@pytest.mark.parametrize(
    "fault", ["lost", "lost before", "500 before", "500 after", "503 before", "503 after"]
)
def test_a_lost_answer_makes_no_second_job(
    fault: str, server: Server, tmp_path: Path, record_property: Any
) -> None:
    """By the rule of every place: what is not known is looked for, and sent again only where it is not."""
    found = place(server, tmp_path)
    ref = f"orc-{fault.replace(' ', 'x'):0<12}"
    server.faults = [fault]
    with pytest.raises(OutcomeUnknown):
        submit(found, tmp_path, ref=ref)
    deadline = time.monotonic() + 240
    wanted = 0 if fault.endswith("before") else 1
    while len(found.find(ref)) != wanted:
        assert time.monotonic() < deadline
        time.sleep(1)
    if not wanted:
        submit(found, tmp_path, ref=ref)
    jobs = len({one.id for one in found.find(ref)})
    counted = {"runs": 1, "jobs": jobs, "alarms": 0, "lost": int(not jobs), "doubled": max(0, jobs - 1)}
    record_property("jobs", {"fault": f"a place: {fault}", "where": "sky", **counted})
    assert jobs == 1


def test_prices_are_those_of_the_servers_catalogs(server: Server, tmp_path: Path) -> None:
    found = place(server, tmp_path)
    deadline = time.monotonic() + 240
    # As it starts, it looks for clouds itself, and finds none.
    while not any(one.hourly for one in found.machines()):
        assert time.monotonic() < deadline
        python(server.env, "print(json.dumps(None))")
    assert {one.name: float(one.hourly.usd_per_hour) for one in found.machines() if one.hourly} == {
        "H100:1": 2.69,
        "H100:2": 5.38,
        "L40S:1": 0.86,
    }
