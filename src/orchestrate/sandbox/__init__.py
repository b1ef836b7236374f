"""Local servers that speak the APIs of OpenAI, Together, Fireworks and Tinker, and really train.

For trying things without a key and for tests of programs that submit jobs. Nothing here is the real service:
every answer carries the header `x-orchestrate-sandbox: 1`, every job `"sandbox": true`, and only keys that
begin with `sandbox-` are taken.

    with running() as sandbox:
        subprocess.run(["my-tests"], env={**os.environ, **sandbox.env})
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.core import require_recent
from orchestrate.errors import MissingExtra
from orchestrate.sandbox.jobs import SLOTS

if TYPE_CHECKING:
    from orchestrate.local import RunDir
    from orchestrate.sandbox.jobs import Durations
    from orchestrate.sandbox.server import Sandbox

__all__ = ["running"]


def running(  # noqa: PLR0913  each is a setting of its own
    *,
    home: str | Path | None = None,
    speed: float = 1.0,
    model: str | None = None,
    train: bool = True,
    slots: int = SLOTS,
    threads: int = 1,
    ports: Sequence[int] = (),
    waits: Durations | None = None,
    also: Sequence[str] = (),
    start: Callable[[RunDir], None] | None = None,
) -> AbstractContextManager[Sandbox]:
    """Run the hosts on 127.0.0.1 until the `with` block ends.

    home             folder for state, uploads and runs; a temporary one by default. A sandbox on the
                     home of an earlier one resumes its jobs.
    speed            how many times shorter all waits are (states other than training, file checks ...).
    model            folder of the model that replaces every base model; the tiny one by default.
    train            False: jobs pass through their states by the clock without training, and say so.
    slots, threads   trainings at once, and threads of each; other jobs stay queued.
    ports            ports of OpenAI, Together, Fireworks, Tinker; 0 or none takes any free port.
    waits            the length of each state at speed 1 (`orchestrate.sandbox.jobs.Durations`).
    also             additional hosts that a YAML file describes, each on a free port.
    start            how to start a training's worker; as a process of its own by default.

    Raises `MissingExtra` when the servers' packages, or with `train` the engine's, are not installed.
    """
    if find_spec("python_multipart") is None:
        raise MissingExtra("sandbox", "the sandbox", "python-multipart")
    for package in ("python-multipart", "starlette", "uvicorn"):
        require_recent(package)
    if train:
        from orchestrate.local.run.launching import require_packages

        require_packages("training in the sandbox", "sandbox")
    from orchestrate.sandbox.server import serve

    return serve(
        home=home,
        speed=speed,
        model=model,
        train=train,
        slots=slots,
        threads=threads,
        ports=ports,
        waits=waits,
        also=also,
        start=start,
    )
