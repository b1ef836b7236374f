"""Makes the pictures of the documentation: the report of a finished `make demo`, pages of the UI, and what
commands print.

python docs/pictures.py              # needs Chromium on the PATH for the report's picture and the page's
python docs/pictures.py spending     # that one alone; `terminal` is all of TERMINALS, or name some of them
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from orchestrate import JobSpec
from orchestrate.api.orchestrator import Orchestrator
from orchestrate.commands.runs import spending as view
from orchestrate.sandbox import running
from orchestrate.settings import config

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
DEMO = ROOT / ".demo"


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or sys.exit("no Chromium on the PATH")


def report() -> Path:
    """The HTML report in Chromium."""
    browser, path = chromium(), IMAGES / "report.png"
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--disable-background-networking", f"--user-data-dir={profile}", "--window-size=1100,1400"]
        page = (DEMO / "report.html").as_uri()
        subprocess.run([browser, *flags, f"--screenshot={path}", page], check=True, capture_output=True)
    return path


def ui() -> Path:
    """The page of a run that is deployed; in few colours, which a page has anyway."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from orchestrate.ui.server import serving

    path = IMAGES / "ui.png"
    rows = [json.dumps({"messages": _turn(f"question {i}", f"answer {i}")}) + "\n" for i in range(240)]
    with tempfile.TemporaryDirectory() as folder, running(train=False, speed=1000) as sandbox:
        train = Path(folder, "tickets.jsonl")
        train.write_text("".join(rows))
        env = {**sandbox.env, "ORCHESTRATE_KEYS": f"{folder}/keys.toml"}
        settings = config.load(env=env, cwd=Path(folder), home=Path(folder, "home"), made_by="ana@lab")
        with Orchestrator(settings) as ft, serving(ft) as url, sync_playwright() as driver:
            spec = JobSpec(model="qwen3-8b", train=str(train), epochs=3, suffix="tickets")
            run = ft.submit(spec, "fireworks")
            run.wait(poll_s=0.05)
            run.deploy(max_hours=3)
            browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1000, "height": 1080})
            page.goto(f"{url}runs/{run.id}")
            page.locator("canvas").first.wait_for()
            page.screenshot(path=path)
            browser.close()
    with Image.open(path) as shown:
        shown.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
    return path


def writing() -> Path:
    """The page of a writer, half way, with guidelines."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from orchestrate.evaluation.review.server import serving
    from orchestrate.evaluation.review.written_rows import RowDraft
    from orchestrate.runs.evaluation import writing_reviews as rows

    path = IMAGES / "writing.png"
    asked = ("Where is my parcel?", "Can I pay later?", "The lamp is broken.", "How do I close my account?")
    with tempfile.TemporaryDirectory() as folder:
        file, guide = Path(folder, "questions.jsonl"), Path(folder, "guide.md")
        turns = [{"messages": [{"role": "user", "content": text}]} for text in asked]
        file.write_text("".join(json.dumps(turn) + "\n" for turn in turns))
        guide.write_text(
            "How we answer\n\n- At most two sentences.\n- Say what happens next, and when.\n"
            "- No greeting and no apology.\n- Never promise a date that you can't see in the order."
        )
        settings = config.load(home=Path(folder, "home"))
        with Orchestrator(settings) as ft:
            order = rows.WritingOrder(file=str(file), writers=("ann", "bo"), guide=guide, overlap=1, seed=1)
            desk = rows.opened(ft, order).session
            for who, answer in (("ann", "It left our warehouse today."), ("bo", "It is on its way.")):
                first = desk.act(RowDraft(action="show"), who)
                desk.act(RowDraft(action="save", task=first["task"], question=asked[0], answer=answer), who)
            with serving(desk, raters=desk.writers) as page, sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
                shown = browser.new_page(viewport={"width": 1100, "height": 700})
                shown.goto(page.links["ann"])
                shown.locator("#answer").fill("Yes, within 14 days of delivery. You get the invoice by mail.")
                shown.screenshot(path=path)
                browser.close()
    with Image.open(path) as taken:
        taken.convert("P", palette=Image.Palette.ADAPTIVE, colors=64).save(path, optimize=True)
    return path


def spending() -> Path:
    """Two accounts of a sandbox: a deployment made by a script and forgotten, one that somebody else made,
    and a host that does not answer."""
    rows = [json.dumps({"messages": _turn(f"question {i}", f"answer {i}")}) + "\n" for i in range(60)]
    with tempfile.TemporaryDirectory() as folder, running(train=False, speed=1000) as sandbox:
        train = Path(folder, "train.jsonl")
        train.write_text("".join(rows * 400))
        named = Path(folder, "orchestrate.toml")
        named.write_text(
            f'[hosts.fireworks-research]\ntype = "fireworks"\nkey_variable = "RESEARCH_KEY"\n'
            f'base_url = "{sandbox.urls["fireworks"]}"\n'
        )
        env = {**sandbox.env, "RESEARCH_KEY": "sandbox-research", "ORCHESTRATE_KEYS": f"{folder}/keys.toml"}
        settings = config.load(env=env, config_file=named, home=Path(folder, "home"), made_by="ana@lab")
        with Orchestrator(settings) as ft:
            for backend in ("openai", "together", "fireworks"):
                model = "gpt-4.1-mini" if backend == "openai" else "qwen3-8b"
                run = ft.submit(JobSpec(model=model, train=str(train), epochs=1), backend)
                run.wait(poll_s=0.05)
                if backend == "fireworks":
                    run.provider.deploy(run.record.handle)
            other: Any = ft.provider("fireworks-research")._at
            other.client().deployments.create(
                account_id=other.account(),
                base_model="accounts/fireworks/models/qwen3-8b",
                deployment_id="somebody-elses",
                deployment_shape="default",
            )
            sandbox.fault("openai", "no_list", count=0)
            found = ft.spending("backend", sandbox=True)
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=136, file=nowhere, force_terminal=True, highlight=False)
        for part in [*view.shown(found), "", *view.notes(found)]:
            console.print(part)
    path = IMAGES / "spending.svg"
    console.save_svg(str(path), title="orchestrate spending --sandbox")
    return path


TERMINALS = {
    "quote": ("quote --provider openai,together,fireworks,local",),
    "plan": ("plan --provider together,local",),
    "check": ("data check train.jsonl", "data inspect train.jsonl"),
    "preview": ("data preview train.jsonl --model tiny-chat",),
    "train": ("submit --provider local --set epochs=3 --yes --watch", "runs"),
    "eval": ("eval last --limit 40",),
    "stored": (
        "sandbox run --no-train --speed 1000 -- orchestrate submit -p together --yes --watch",
        "sandbox run --no-train --speed 1000 -- orchestrate stored -p together",
    ),
    "advise": ("advise train.jsonl --goal format",),
    "memory": ("local memory qwen3-8b --device cuda --available 24",),
    "doctor": ("doctor",),
    "keys": (
        "gateway keys add ann --project search --backend together --budget 200 --per-minute 60",
        "gateway keys add bob --map gpt-4o-mini=local:qwen3-4b --expires 2027-03-01",
        "gateway keys list",
    ),
    "queue": ("queue add -p local --set max_steps=2 --yes", "queue ls"),
}
"""Picture -> the commands, in their order, of which it shows the last one's output."""


def terminal(*names: str) -> Path:
    """What commands print, in the folder of the demo's files: all of `TERMINALS`, or those named."""
    program = Path(sys.executable).with_name("orchestrate")
    path = IMAGES
    with tempfile.TemporaryDirectory() as folder:
        env = {k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATE_")}
        env |= {"ORCHESTRATE_HOME": f"{folder}/home", "ORCHESTRATE_KEYS": f"{folder}/keys.toml"}
        env |= {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}
        env |= {"COLUMNS": "120", "FORCE_COLOR": "1", "HF_HUB_OFFLINE": "1", "ORCHESTRATE_BY": "ana@lab"}
        project = Path(folder, "orders")
        project.mkdir()
        steps = [
            ("", "demo --files-only ."),
            ("", "keys trust --project"),
            *_lines(names or tuple(TERMINALS)),
        ]
        for name, line in steps:
            words = [str(program), *line.split()]
            done = subprocess.run(words, cwd=project, env=env, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{line}\n{done.stdout}{done.stderr}")
            if name:
                printed = done.stdout or done.stderr
                for place in (str(ROOT / "src/orchestrate"), folder):
                    printed = _shortened(printed, place)
                path = _drawn(name, line, printed)
    return path


def _lines(names: Sequence[str]) -> list[tuple[str, str]]:
    """Each command, with the picture that it makes if it is the last of one."""
    chosen = [(name, TERMINALS[name]) for name in names]
    return [(name if line == lines[-1] else "", line) for name, lines in chosen for line in lines]


def _shortened(printed: str, place: str) -> str:
    """With `~` for a folder of this machine; what stands beside it keeps its column."""
    lines: list[str] = []
    for line in printed.split("\n"):
        before, found, after = line.partition(place)
        cell = re.match(r".*?(?=\s\s|$)", after)
        end = cell.end() if cell else 0
        lines.append(f"{before}~{after[:end]}{' ' * (len(place) - 1)}{after[end:]}" if found else line)
    return "\n".join(lines)


def _drawn(name: str, line: str, printed: str) -> Path:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=120, file=nowhere, force_terminal=True, highlight=False)
        console.print(Text(f"$ orchestrate {line}", style="bold green"))
        console.print(Text.from_ansi(printed), soft_wrap=True)
    path = IMAGES / f"{name}.svg"
    console.save_svg(str(path), title=f"orchestrate {line.split()[0]}")
    return path


def _turn(asked: str, answered: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    pictures = {"report": report, "spending": spending, "ui": ui, "writing": writing, "terminal": terminal}
    asked = sys.argv[1:] or [*pictures]
    for name in [one for one in asked if one in pictures]:
        print(pictures[name]().relative_to(ROOT))
    if drawn := [one for one in asked if one not in pictures]:
        print(terminal(*drawn).relative_to(ROOT))
