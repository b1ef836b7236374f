"""Bridge to SkyPilot. Runs in SkyPilot's own environment (Python 3.9 or later) and imports nothing of ours.
Reads a request as a line of JSON on standard input, and writes the response as a line on standard output. The
client's own output is sent to standard error.

A response is `{"ok": ...}` or `{"error": {"kinds": [names of the classes], "message": ...}}`.
"""

from __future__ import annotations

import io
import json
import os
import sys
from importlib import import_module
from typing import Any

LAUNCH = "jobs.launch"
RECENT = 200
"""Maximum number of ended requests to search, newest first."""


def _sdk() -> Any:
    return import_module("sky.client.sdk")


def _jobs() -> Any:
    return import_module("sky.jobs.client.sdk")


def once() -> None:
    """Stop the client from resending requests after a 503, even those that create something. A proxy may
    return 503 although the server has accepted the request."""
    rest: Any = import_module("sky.server.rest")
    rest.request = rest.request_without_retry


def _asleep() -> bool:
    """Return True if the API server is on this machine and is not running. The client would start it
    permanently, so read-only queries read the server's own sources instead."""
    common: Any = import_module("sky.server.common")
    return common.is_api_server_local() and common.get_api_server_status().status.value == "unhealthy"


def enabled(clouds: list[str]) -> list[str]:
    """List the clouds that are set up, limited to `clouds` if given. Starts nothing."""
    sdk = _sdk()
    found = import_module("sky.core").enabled_clouds() if _asleep() else sdk.get(sdk.enabled_clouds())
    names = [str(name).lower() for name in found]
    return [name for name in names if not clouds or name in clouds]


def machines(clouds: list[str]) -> list[dict[str, Any]]:
    """List the machines in the catalogs of the clouds that are set up here, limited to `clouds` if given.
    Starts nothing."""
    wanted = enabled(clouds)
    if not wanted:
        return []
    asked = {"gpus_only": True, "clouds": wanted, "all_regions": True}
    sdk = _sdk()
    found: dict[str, list[Any]] = (
        import_module("sky.catalog").list_accelerators(**asked)
        if _asleep()
        else sdk.get(sdk.list_accelerators(**asked))
    )
    offers = [_fields(offer) for some in found.values() for offer in some]
    return [
        {
            "cloud": one[0],
            "gpu": one[2],
            "count": one[3],
            "memory_gib": _number(one[5]),
            "price": _number(one[7]),
            "spot_price": _number(one[8]),
            "region": one[9],
        }
        for one in offers
    ]


def _fields(offer: Any) -> list[Any]:
    """Return the fields of an `InstanceTypeInfo` in the order of its class."""
    return list(offer.values() if hasattr(offer, "values") else offer)


def _number(value: Any) -> float | None:
    """Convert a price. SkyPilot represents an unknown one as NaN."""
    return None if value is None or value != value else float(value)


def launch(task: dict[str, Any]) -> str:
    """Request a job and return the id of the request. The job is created later (see `jobs`)."""
    name = task["name"]  # its loader takes the fields out
    made = import_module("sky").Task.from_yaml_config(task)
    return str(_jobs().launch(made, name=name))


def jobs(name: str) -> list[dict[str, Any]]:
    """List the jobs whose name contains `name`, and requests for jobs that have not been created yet."""
    asked = _requests(name)
    sdk = _sdk()
    try:
        answer = sdk.get(
            _jobs().queue_v2(refresh=False, all_users=False, fields=None, name_match=name or None)
        )
        records: list[Any] = answer[0]
    except Exception as error:
        # The server's jobs controller is stopped or deleted, which is only possible if no job is running.
        if "ClusterNotUpError" not in _kinds(error):
            raise
        records = []
    found = [_job(one, asked) for one in records]
    there = {one["name"] for one in found}
    waiting = [one for one in asked.values() if one["name"] not in there and one["status"] != "SUCCEEDED"]
    return found + [{**one, "status": f"REQUEST_{one['status']}"} for one in waiting]


def _job(record: Any, asked: dict[str, dict[str, Any]]) -> dict[str, Any]:
    one: Any = record.model_dump() if hasattr(record, "model_dump") else record
    status = str(getattr(one["status"], "value", one["status"]))
    name = str(one["job_name"])
    request = asked.get(name)
    live = request is not None and request["status"] in ("PENDING", "RUNNING")
    message = one.get("failure_reason") or one.get("details")
    if status == "PENDING" and one.get("schedule_state") == "INACTIVE" and not live:
        status = "NEVER_SCHEDULED"
        message = (request or {}).get("message") or message
    return {
        "id": one["job_id"],
        "name": name,
        "status": status,
        "message": message,
        "submitted_at": one.get("submitted_at"),
        "started_at": one.get("start_at"),
        "ended_at": one.get("end_at"),
        "seconds": one.get("job_duration") or 0,
        "cloud": one.get("cloud"),
        "region": one.get("region"),
        "accelerators": one.get("accelerators"),
        "resources": one.get("cluster_resources_full") or one.get("resources"),
        "cluster": one.get("cluster_name_on_cloud"),
    }


def _requests(name: str) -> dict[str, dict[str, Any]]:
    """Map each job name to its newest create request."""
    sdk = _sdk()
    listed = [*sdk.api_status(all_status=True, limit=RECENT), *sdk.api_status()]
    found: dict[str, dict[str, Any]] = {}
    for one in sorted(listed, key=lambda one: float(one.created_at)):
        if not str(one.name).endswith(LAUNCH):
            continue
        body: Any = json.loads(one.request_body or "{}")
        asked = str(body["name"] or "") if body else ""
        if not asked or name not in asked:
            continue
        found[asked] = {
            "id": f"request {one.request_id}",
            "name": asked,
            "status": str(one.status),
            "message": _why(one) if str(one.status) in ("FAILED", "CANCELLED") else one.status_msg,
            "submitted_at": float(one.created_at),
            "seconds": 0,
        }
    return found


def _why(request: Any) -> str:
    try:
        _sdk().get(request.request_id)
    except Exception as error:  # noqa: BLE001  what is asked for
        return str(error)
    return ""


def cancel(ids: list[int]) -> None:
    _sdk().get(_jobs().cancel(job_ids=ids))


def withdraw(request: str) -> None:
    """Cancel a request that has not created a job yet."""
    sdk = _sdk()
    sdk.get(sdk.api_cancel(request))


def logs(id: int, lines: int) -> str:
    out = io.StringIO()
    _jobs().tail_logs(job_id=id, follow=False, tail=lines, output_stream=out)
    return out.getvalue()


def paid(cloud: str, cluster: str) -> float | None:
    """Return what the cloud itself charges for a cluster's machines, for clouds whose prices are not in the
    catalog. Returns `None` for other clouds, if no machine has the name that SkyPilot gives to one of this
    cluster, or if the cloud is set up only at the server."""
    names = (f"{cluster}-head", f"{cluster}-worker")  # cluster `x-1` is a prefix of `x-12`
    try:
        if cloud.lower() == "vast":
            found = import_module("sky.adaptors.vast").vast().show_instances()
            prices = [one["dph_total"] for one in found if one["label"] in names]
        elif cloud.lower() == "runpod":
            pods = import_module("sky.adaptors.runpod").runpod.get_pods()
            prices = [one["costPerHr"] for one in pods if one["name"] in names]
        else:
            return None
    except Exception:  # noqa: BLE001  without its package or key here there is no such price
        return None
    return float(sum(prices)) if prices else None


def version() -> str:
    return str(import_module("sky").__version__)


_ASKED = (enabled, machines, launch, jobs, cancel, withdraw, logs, paid, version)
QUESTIONS = {one.__name__: one for one in _ASKED}


def _kinds(error: BaseException) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def main() -> None:
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    once()
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer: dict[str, Any] = {"ok": QUESTIONS[asked.pop("ask")](**asked)}
        except BaseException as error:  # the client ends its process for some
            if isinstance(error, KeyboardInterrupt):
                raise
            answer = {"error": {"kinds": _kinds(error), "message": str(error) or repr(error)}}
        out.write(json.dumps(answer, default=str) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
