"""The `demo` command: the main workflow on this machine, without a key.

Each step prints an `orchestrate` command and runs it. The local run is real. A sandbox replaces the three
hosts: the real SDK clients connect to local servers, which train the bundled tiny model instead of the host's
model. Nothing leaves this machine, and no key is read.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.padding import Padding
from rich.text import Text

from orchestrate.bundled import bundled
from orchestrate.commands.terminal.console import note, out, print_text
from orchestrate.errors import SetupError, UsageError
from orchestrate.profile import built_in, this_machine
from orchestrate.settings import trust
from orchestrate.settings.config import CONFIG_NAME

_FOLDER = Path("orchestrate-demo")
_FILES = ("finetune.yaml", "train.jsonl", "validation.jsonl", "test.jsonl")
_EPOCHS = "--epochs 2"
"""Option that replaces the spec's three epochs with two. The demo's four runs then finish in two thirds of
the time, and their models are nearly as good."""
_CONFIG = 'home = "home"   # commands run in this folder use this store\n'


def demo(
    folder: Annotated[Path, typer.Argument(help="Output folder. Created if missing.")] = _FOLDER,
    train: Annotated[
        bool,
        typer.Option(
            "--train/--no-train",
            help="Train models. --no-train needs no torch, but leaves no model to evaluate or chat with.",
        ),
    ] = True,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Only write the data and the spec.")
    ] = False,
) -> None:
    """Run the main workflow from end to end on this machine: check, quote, train, evaluate, compare. No key,
    no cost.

    Writes everything to FOLDER, where you can continue with the runs. To remove the demo, delete the folder.
    Trusts the folder's settings as `keys trust --project` does, and records this next to your key file."""
    _write(folder)
    if files_only:
        print_text("\n".join(str(folder / name) for name in (*_FILES, CONFIG_NAME)))
        return
    _require_packages(train)
    took = "1 to 3 minutes on two cores" if train else "about a minute, without training"
    note(f"the demo takes {took}, writes to {folder.resolve()} and contacts no host")
    _Demo(folder).go(train)


def _write(folder: Path) -> None:
    """Write the bundled files, and trusted settings with a separate home. Raises `UsageError` if the folder
    contains different files with these names."""
    texts = {name: (bundled("orders") / name).read_bytes() for name in _FILES}
    texts[CONFIG_NAME] = _CONFIG.encode()
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is not a folder", fix="orchestrate demo FOLDER")
    for name, text in texts.items():
        path = folder / name
        if path.exists() and path.read_bytes() != text:
            raise UsageError(
                f"{path} already exists with different content. Nothing was written",
                fix="orchestrate demo ANOTHER_FOLDER",
            )
    folder.mkdir(parents=True, exist_ok=True)
    new = not (folder / CONFIG_NAME).exists() and not (folder / "home").exists()
    for name, text in texts.items():
        (folder / name).write_bytes(text)
    if new:  # existing files may come from someone else
        with suppress(OSError):  # the next command in the folder asks for trust
            trust.trusted_in().add((folder / CONFIG_NAME,))


def _require_packages(train: bool) -> None:
    """Check all packages before the first step. Raises `SetupError`."""
    needed = ["python_multipart", *(["torch", "transformers", "peft"] if train else [])]
    if missing := [name for name in needed if find_spec(name) is None]:
        light = "pip install 'orchestrate-ft[gateway]', then orchestrate demo --no-train"
        raise SetupError(
            f"the demo needs packages that are not installed: {', '.join(missing)}",
            fix=f"pip install 'orchestrate-ft[sandbox]'. Without torch: {light}",
        )


class _Demo:
    """Runs `orchestrate` commands in one folder and shows them as a user would type them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.steps = folder.resolve(), 0
        reached = ("_API_KEY", "_BASE_URL")
        self.env = {
            name: value
            for name, value in os.environ.items()
            if not (name.startswith("ORCHESTRATE_") or name.endswith(reached))
        }
        keys = str(self.folder / "home" / "keys.toml")
        named = str(self.folder / CONFIG_NAME)
        self.env |= {
            "ORCHESTRATE_KEYS": keys,
            "ORCHESTRATE_CONFIG": named,
            "HF_HUB_OFFLINE": "1",
            "PYTHONUTF8": "1",
        }
        self.env.setdefault("OMP_NUM_THREADS", "1")  # the matrices of the tiny model are too small for more
        # The commands print to a pipe, so they cannot detect the terminal's width.
        self.env.setdefault("COLUMNS", str(shutil.get_terminal_size((120, 24)).columns))

    def go(self, train: bool) -> None:
        started = time.monotonic()
        self._step("Check the data for every backend at once")
        self._run(
            "check" if train else f"check --provider {_hosted_kinds()}"
        )  # this machine may lack the training packages
        self._step("What would it cost?", "The hosts' real prices, from the rates in this package.")
        self._run(f"quote {_EPOCHS}")
        here = self._begun_here() if train else []
        try:
            runs = [*here, *self._hosted(train)]
        except BaseException:
            if here:
                note(
                    f"the local run continues. To watch it: cd {self.folder}; orchestrate watch {here[0]}. "
                    "To stop it: orchestrate cancel"
                )
            raise
        if here:
            self._run(f"watch {here[0]}")
        names = " ".join(runs)
        if train:
            self._step("Was it worth it? Base vs. tuned on 200 held-out rows")
            self._run(f"eval {names}")
        self._step("Side by side")
        self._run(f"compare {names}")
        self._run(f"compare {names} -o report.html")
        if train:
            self._step("Chat with the tuned model")
            self._run(f"chat {runs[0]} {shlex.quote(self._first_question())}")
        # These variables of the user would lead to another store than the folder's.
        others = [name for name in ("ORCHESTRATE_HOME", "ORCHESTRATE_STORE") if os.environ.get(name)]
        unset = f"unset {' '.join(others)}; " if others else ""
        folder = shlex.quote(os.path.relpath(self.folder))
        self._say(
            f"Done in {time.monotonic() - started:.0f} s",
            f"report: {self.folder / 'report.html'}",
            f"continue with:  {unset}cd {folder}; orchestrate runs --sandbox",
        )

    def _begun_here(self) -> list[str]:
        self._step(
            "Train here: QLoRA on this CPU",
            "Real training of a tiny test model.",
            "The run has its own process, so the demo continues in the meantime.",
        )
        return self._run(f"submit --provider {this_machine().kind} {_EPOCHS} --yes --again").split()

    def _hosted(self, train: bool) -> list[str]:
        what = (
            "train for real, but use a tiny model instead of the host's."
            if train
            else "simulate job states without training (--no-train)."
        )
        titles = ", ".join(one.title for one in built_in().values() if not one.near)
        self._step(
            "The same spec on three hosts",
            f"SANDBOX: local sandboxes of {titles}. They implement the hosts' APIs and {what}",
            "With your key in the environment, the same command uses the real host.",
        )
        way = ["--speed", "5"] if train else ["--no-train"]
        submit = f"submit --provider {_hosted_kinds()} {_EPOCHS} --watch --max-cost 25 --again"
        command = [sys.executable, "-P", "-m", "orchestrate.cli", *submit.split()]
        shown = " ".join(["orchestrate sandbox run", *way, "-- orchestrate", submit])
        return self._process(shown, ["sandbox", "run", *way, "--", *command]).split()

    def _step(self, title: str, *lines: str) -> None:
        self.steps += 1
        self._say(f"{self.steps}. {title}")
        for line in lines:
            out.print(Padding(Text(line), (0, 0, 0, 3)))

    def _say(self, title: str, *lines: str) -> None:
        out.print()
        out.print(Text(f"== {title}", style="bold"))
        for line in lines:
            print_text(f"   {line}")  # paths and commands, to be copied

    def _run(self, command: str) -> str:
        """Run one command line and return its stdout. Ends the demo if the command fails."""
        return self._process(f"orchestrate {command}", shlex.split(command))

    def _process(self, shown: str, words: list[str]) -> str:
        print_text(f"\n$ {shown}")
        sys.stdout.flush()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "orchestrate.cli", *words],
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        print_text(done.stdout.rstrip("\n"))
        if done.returncode != 0:
            note(f"the demo stopped: {shown} ended with exit code {done.returncode}")
            raise typer.Exit(done.returncode)
        return done.stdout

    def _first_question(self) -> str:
        with (self.folder / "test.jsonl").open(encoding="utf-8") as rows:
            return json.loads(rows.readline())["messages"][0]["content"]


def _hosted_kinds() -> str:
    return ",".join(one.kind for one in built_in().values() if not one.near)
