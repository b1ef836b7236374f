"""The `sandbox` commands: local sandboxes of the hosts' APIs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import ended_by_signal, note, print_text, settings_of
from orchestrate.commands.terminal.options import OPTIONAL_COMMAND
from orchestrate.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrate.sandbox.server import Sandbox

FIRST_PORT = 8751
"""Port of the OpenAI sandbox. The sandboxes of Together, Fireworks and Tinker use the next ports."""

app = typer.Typer(
    invoke_without_command=True,
    subcommand_metavar=OPTIONAL_COMMAND,
    add_completion=False,
    no_args_is_help=False,
    help="Run local sandboxes of the hosts' APIs. Training is real. No key, no cost.",
)

HomeOpt = Annotated[
    Path | None, typer.Option("--sandbox-home", help="Folder for the sandbox's jobs and files.")
]
SpeedOpt = Annotated[
    float, typer.Option("--speed", min=0.01, help="Divide all waiting times by this factor.")
]
TrainOpt = Annotated[
    bool, typer.Option("--train/--no-train", help="Train a tiny model, or only simulate job states.")
]
ModelOpt = Annotated[str | None, typer.Option("--model", help="Train the model in this folder instead.")]
SlotsOpt = Annotated[
    int | None,
    typer.Option("--slots", min=1, help="Maximum number of concurrent training jobs. Default: 3."),
]
ThreadsOpt = Annotated[int, typer.Option("--threads", min=1, help="Threads per training job.")]
AlsoOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--also",
        help="Also run a sandbox of this host, such as azure; repeatable. The host must be described in "
        "YAML. Uses any free port.",
    ),
]
PortOpt = Annotated[
    int, typer.Option("--port", min=0, max=65532, help="First of four consecutive ports. 0 picks free ones.")
]


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """Options for starting the sandboxes."""

    home: HomeOpt = None
    speed: SpeedOpt = 1.0
    train: TrainOpt = True
    model: ModelOpt = None
    slots: SlotsOpt = None
    threads: ThreadsOpt = 1
    also: AlsoOpt = None


class SandboxUp(TypedDict):
    sandbox: bool
    env: dict[str, str]
    urls: dict[str, str]
    home: str


@app.callback()
@command
def sandbox(
    context: typer.Context,
    *,
    hosts: SandboxOptions,
    port: PortOpt = FIRST_PORT,
) -> Iterator[Output[SandboxUp]]:
    """Start the sandboxes, print the environment variables that clients need, and serve until interrupted.

    Jobs are saved in the home folder and continue after a restart."""
    if context.invoked_subcommand is not None:
        return
    kept = hosts.home or _default_home(context)
    with _start(replace(hosts, home=kept), port) as running, ended_by_signal() as ended:
        yield Output(
            SandboxUp(sandbox=True, env=running.env, urls=running.urls, home=str(running.home)), _show
        )
        note(f"sandbox on {', '.join(running.urls.values())}; jobs are saved in {running.home}")
        note("paste the lines above into another shell. Ctrl-C stops the sandbox")
        ended.wait()


def _show(up: SandboxUp) -> None:
    for name, value in up["env"].items():
        print_text(f"export {name}={shlex.quote(value)}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
@command
def run(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(metavar="-- CMD ...", help="Command to run.")],
    *,
    hosts: SandboxOptions,
    port: PortOpt = 0,
) -> None:
    """Run a command against the sandbox. Returns the command's exit code.

    Uses the running sandbox. If none is running, starts one and stops it after the command. Jobs are saved,
    and later commands that query them restart the sandbox."""
    from orchestrate.sandbox.connection import joined

    words = [*command, *context.args]
    kept = hosts.home or _default_home(context)
    # The command may call `orchestrate`, which is not on PATH if this program was started by its path.
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))
    with joined(kept, port, **_start_options(hosts)) as env:
        try:
            child = subprocess.Popen(words, env={**os.environ, "PATH": path, **env})
        except OSError as error:
            raise UsageError(f"cannot run {words[0]}: {error}") from error
        raise typer.Exit(_code_of(child))


def _start(hosts: SandboxOptions, port: int) -> AbstractContextManager[Sandbox]:
    from orchestrate.sandbox.connection import running

    return running(port, home=hosts.home, **_start_options(hosts))


def _start_options(hosts: SandboxOptions) -> dict[str, Any]:
    """Return all given options except the home folder."""
    given = {name: value for name, value in vars(hosts).items() if name != "home" and value is not None}
    return given | {"also": hosts.also or ()}


def _default_home(context: typer.Context) -> Path:
    from orchestrate.sandbox.connection import home_of

    return home_of(settings_of(context))


def _code_of(child: subprocess.Popen[bytes]) -> int:
    """Wait for the child and return its exit code. Ctrl-C also reaches the child, which decides how to
    handle it."""
    while True:
        try:
            code = child.wait()
        except KeyboardInterrupt:
            continue
        return code if code >= 0 else 128 - code
