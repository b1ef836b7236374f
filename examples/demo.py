"""The main job from end to end, on this machine and without a key: what `make demo` runs.

Every step is a command of `orchestrate` that you can type yourself; it is printed before it is run. The local
run is the real thing. The three hosts are stood in for by the sandbox: the real SDK clients talk to local
servers that train the bundled tiny model in place of the host's. Nothing leaves this machine, and no key is
read.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from orchestrate.sandbox import running

ROOT = Path(__file__).resolve().parent.parent
SPEC = "examples/orders/finetune.yaml"
HOSTED = "openai,together,fireworks"
KEYS = ("OPENAI_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY")


class Demo:
    """Runs commands of `orchestrate` in one environment and shows them as a person would type them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {k: v for k, v in os.environ.items() if k not in KEYS and not k.endswith("_BASE_URL")}
        self.env |= {
            "ORCHESTRATE_HOME": str(home),
            "ORCHESTRATE_KEYS": str(home / "keys.toml"),
            "HF_HUB_OFFLINE": "1",
        }

    def say(self, title: str, *lines: str) -> None:
        print(f"\n\033[1m== {title}\033[0m" if sys.stdout.isatty() else f"\n== {title}", flush=True)
        for line in lines:
            print(f"   {line}", flush=True)

    def run(self, command: str, *, quiet: bool = False) -> str:
        """Runs one command line and returns its stdout; ends the demo when it fails."""
        shown = f"orchestrate {command}"
        print(f"\n$ {shown}", flush=True)
        words = [sys.executable, "-m", "orchestrate.cli"]
        done = subprocess.run(
            [*words, *shlex.split(command)], cwd=ROOT, env=self.env, stdout=subprocess.PIPE, text=True
        )
        if not quiet:
            print(done.stdout, end="", flush=True)
        if done.returncode != 0:
            sys.exit(f"the demo stopped: {shown!r} ended with exit code {done.returncode}")
        return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="The main job of Orchestrate, end to end.")
    parser.add_argument("--home", type=Path, default=ROOT / ".demo", help="where the demo keeps its files")
    demo = Demo(parser.parse_args().home.resolve())
    started = time.monotonic()

    demo.say("1. Check the data, for every backend at once")
    demo.run(f"check {SPEC}")

    demo.say("2. What would it cost?", "Real prices of the three hosts, from the rates in this repository.")
    demo.run(f"quote {SPEC}")

    demo.say("3. Train here: QLoRA on this CPU", "For real; the base is a tiny model made for tests.")
    [local] = demo.run(f"submit {SPEC} --provider local --watch --yes --again").split()

    demo.say(
        "4. The same spec on three hosts",
        "SANDBOX: local stand-ins of OpenAI, Together and Fireworks. They speak the hosts' protocols and",
        "really train, but the tiny model instead of the host's. With your key in the environment, the same",
        "line goes to the real host.",
    )
    with running(home=demo.home / "sandbox") as hosts:
        demo.env |= hosts.env
        hosted = demo.run(f"submit {SPEC} --provider {HOSTED} --watch --max-cost 25 --again").split()
        runs = " ".join([local, *hosted])

        demo.say("5. Was it worth it? Base against tuned, on 200 rows that no run has seen")
        demo.run(f"eval {runs}")

    demo.say("6. Side by side")
    demo.run(f"compare {runs}")
    report = demo.home / "report.html"
    demo.run(f"compare {runs} -o {shlex.quote(str(report))}", quiet=True)

    demo.say("7. Ask the tuned model")
    message = first_question(ROOT / "fixtures/datasets/orders/test.jsonl")
    demo.run(f"chat {local} {shlex.quote(message)}")

    demo.say(f"Done in {time.monotonic() - started:.0f} s", f"report: {report}", f"files:  {demo.home}")


def first_question(path: Path) -> str:
    with path.open(encoding="utf-8") as rows:
        return json.loads(rows.readline())["messages"][0]["content"]


if __name__ == "__main__":
    main()
