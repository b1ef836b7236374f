"""Makes the pictures of the README from the runs of a finished `make demo`.

python docs/pictures.py        # needs Chromium on the PATH for the report's picture
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from orchestrate import config
from orchestrate.commands.live import panel
from orchestrate.service import Orchestrator

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
HOME = ROOT / ".demo"


def watch() -> Path:
    """The live view of the demo's runs, as it stands at their end."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=118, file=nowhere, force_terminal=True)
        with Orchestrator(config.load(home=HOME)) as ft:
            for run in reversed(ft.runs()):
                record = run.record
                at = record.finished_at or record.updated_at
                console.print(panel(record, run.metrics(), run.events(), at))
    path = IMAGES / "watch.svg"
    console.save_svg(str(path), title="orchestrate watch")
    return path


def report() -> Path:
    """The HTML report in Chromium."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("no Chromium on the PATH")
    path = IMAGES / "report.png"
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += ["--disable-background-networking", f"--user-data-dir={profile}", "--window-size=1100,1500"]
        page = (HOME / "report.html").as_uri()
        subprocess.run([browser, *flags, f"--screenshot={path}", page], check=True, capture_output=True)
    return path


if __name__ == "__main__":
    IMAGES.mkdir(parents=True, exist_ok=True)
    for made in (watch(), report()):
        print(made.relative_to(ROOT))
