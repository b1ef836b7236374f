"""Local servers that implement the APIs of OpenAI, Together, Fireworks and Tinker, and really train.

Use them to try Orchestrate without an API key, and to test programs that submit jobs. They are not the real
services: every response has the header `x-orchestrate-sandbox: 1`, every job has `"sandbox": true`, and only
keys that start with `sandbox-` are accepted.

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

    home             folder for state, uploads and runs. Default: a temporary one. A new sandbox with the
                     same folder resumes its jobs.
    speed            factor that shortens waits, such as file checks and all job states except training.
    model            folder of the model that replaces every base model. Default: the tiny model.
    train            False: jobs pass through their states without training, and are marked as untrained.
    slots, threads   number of concurrent training runs (other jobs stay queued), and threads per run.
    ports            ports of OpenAI, Together, Fireworks, Tinker. 0 or none: any free port.
    waits            duration of each state at speed 1 (`orchestrate.sandbox.jobs.Durations`).
    also             additional hosts described by YAML files, each on a free port.
    start            function that starts a training worker. Default: starts a separate process.

    Raises `MissingExtra` if the servers' packages are not installed. With `train`, the engine's packages are
    required too.
    """
    if find_spec("python_multipart") is None:
        raise MissingExtra("sandbox", "the sandbox", "python-multipart")
    for package in ("python-multipart", "starlette", "uvicorn"):
        require_recent(package)
    if train:
        from orchestrate.local.run.launcher import require_packages

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
