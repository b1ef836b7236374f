"""Adapters that a user brings: files that were uploaded, held as a job that has always been over."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.core.files import new_folder
from orchestrate.sandbox.host import HostError
from orchestrate.sandbox.jobs import BROUGHT, Job, brought_at

if TYPE_CHECKING:
    from orchestrate.sandbox.host import Host

KIND = BROUGHT
FILES = {"adapter_config.json", "adapter_model.safetensors"}


def folder_of(host: Host, id: str) -> Path:
    """Where the files of an adapter lie; made."""
    return new_folder(brought_at(host.state.runs, host.name, id))


def add(host: Host, id: str, name: str, base: str) -> Job:
    """Files that are there become an adapter that can be deployed. Raises `HostError` for what is none."""
    job = made(host, id, name, base)
    keep(host, job)
    return job


def keep(host: Host, job: Job) -> None:
    host.state.put(host.name, KIND, job.id, job.to_dict())


def every(host: Host) -> Iterator[Job]:
    for values in host.state.all(host.name, KIND):
        yield Job.from_dict(values)


def found(host: Host, id: str) -> Job | None:
    values = host.state.get(host.name, KIND, id)
    return Job.from_dict(values) if values else None


def made(host: Host, id: str, name: str, base: str) -> Job:
    """As `add`, and not kept."""
    config = _config(folder_of(host, id))
    now = host.clock.now()
    return Job(
        id=id,
        host=host.name,
        kind=KIND,
        model=base,
        base=base,
        body={"config": config},
        training_file="",
        trained=True,
        lora_rank=int(config["r"]),
        output=name,
        created_at=now,
        validated_at=now,
        started_at=now,
        trained_at=now,
        finished_at=now,
    )


def _config(folder: Path) -> dict[str, Any]:
    there = {file.name for file in folder.iterdir()}
    if there != FILES:
        raise HostError(
            400, f"an adapter is {', '.join(sorted(FILES))}; got {', '.join(sorted(there)) or 'none'}"
        )
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        with (folder / "adapter_model.safetensors").open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            names = [n for n in json.loads(file.read(length)) if n != "__metadata__"]
    except (ValueError, struct.error) as error:
        raise HostError(400, f"the files are not an adapter of PEFT's: {error}") from error
    if config.get("peft_type") != "LORA" or not isinstance(config.get("r"), int):
        raise HostError(400, "adapter_config.json is not that of a LoRA adapter")
    if other := [name for name in names if ".lora_A." not in name and ".lora_B." not in name]:
        raise HostError(400, f"unexpected tensors: {', '.join(other[:3])}")
    return config
