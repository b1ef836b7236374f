"""How fast training data is checked, beside what people use today: the same text, one machine, one run.

    python benchmarks/data.py                                  side by side, 100 MB, three rounds
    python benchmarks/data.py --size 1000 --rounds 5           the same on 1 GB
    python benchmarks/data.py --size 0 --growth 100,1000,10000 check alone: linear? and the peak of memory
    python benchmarks/data.py --text FOLDER                    rows of other text

Five ways, each the whole life of a process, imports and vocabularies included, in turn, round after round:

- `check`: `orchestrate data check` for all backends: format, roles, tools, exact o200k counts of all and of
  trained tokens, duplicates, contradictions, secrets, personal data, damage, portability. Near duplicates
  (`--near`) are not looked for, as by default.
- `cookbook`: what OpenAI's cookbook does in "Data preparation and analysis for chat model fine-tuning": all
  rows in memory, format errors, tiktoken counts of each row and once more of its answers, distributions, and
  the tokens that are billed; with o200k, so that its counts can be compared with ours.
- `sampled`: `check` with `--tokens sampled`, whose count must be as near the exact one as it says.
- `uncounted`: all that `check` does but counting, without a tokenizer.
- `together`: `together.lib.utils.files.check_file`, which parses each line and counts no tokens.

The rows are cut from the Python files and documents of this environment, or from the text and translations
(`*.po`) under `--text`, with a fixed seed. Where the machine does other things too compare CPU seconds: they
count all of a way's processes. The files lie under TMPDIR, one at a time: 10 GB need 10 GB there. Needs the
package bpe-openai: tiktoken's own vocabulary without a network.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import re
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
ROW_BYTES = 3_100
SOURCE_CHARACTERS = 60_000_000
DOCUMENTS = (".py", ".md", ".rst", ".txt", ".po")
SAMPLED_WITHIN = 0.03
WAYS = ("check", "cookbook", "sampled", "uncounted", "together")


# -- the rows


def texts(folders: list[Path]) -> Iterator[str]:
    """In the order of their paths."""
    for root in folders:
        for file in sorted(root.rglob("*")):
            if file.suffix in DOCUMENTS or file.name == "METADATA":
                with contextlib.suppress(UnicodeDecodeError, OSError):
                    text = file.read_text(encoding="utf-8")
                    yield _translated(text) if file.suffix == ".po" else text


def _translated(catalog: str) -> str:
    """The translations of a gettext catalog, without their originals."""
    entries = re.findall(r'^msgstr(?:\[\d\])? ((?:"[^\n]*"\n?)+)', catalog, re.MULTILINE)
    return "\n".join("".join(json.loads(line, strict=False) for line in e.splitlines()) for e in entries)


def make(file: Path, megabytes: int, folder: str | None) -> None:
    """Chat rows of about `ROW_BYTES`, with one or two turns."""
    default = [Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))]
    pieces: list[str] = []
    size = 0
    for text in texts([Path(folder)] if folder else default):
        pieces.append(text)
        size += len(text)
        if size > SOURCE_CHARACTERS:
            break
    source = "\n".join(pieces)
    width = len(source.encode()) / len(source)
    r = random.Random(7)

    def cut(least: int, most: int) -> str:
        length = int(r.randint(least, most) / width)
        at = r.randrange(len(source) - length)
        return source[at : at + length].strip() or "."

    size = 0
    with file.open("wb") as out:
        while size < megabytes * 1_000_000:
            messages = [{"role": "system", "content": "You are a helpful assistant."}]
            for _ in range(r.choice((1, 1, 2))):
                messages.append({"role": "user", "content": cut(80, 900)})
                messages.append({"role": "assistant", "content": cut(300, ROW_BYTES)})
            size += out.write(json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n")


# -- the ways; each returns (tokens, trained tokens)


def check(file: str, *words: str) -> tuple[int, int]:
    from orchestrate.cli import app

    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        app(["data", "check", file, "--tokenizer", "o200k", "--json", *words], standalone_mode=False)
    facts = json.loads(told.getvalue())["report"]["files"][0]
    return facts["tokens"], facts["trained_tokens"]


def sampled(file: str) -> tuple[int, int]:
    return check(file, "--tokens", "sampled")


def cookbook(file: str) -> tuple[int, int]:
    import numpy as np
    import tiktoken

    encoding = tiktoken.get_encoding("o200k_base")
    with Path(file).open(encoding="utf-8") as opened:
        rows = [json.loads(line) for line in opened]

    errors: Counter[str] = Counter()
    for row in rows:
        messages = row.get("messages") if isinstance(row, dict) else None
        if not messages:
            errors["no messages"] += 1
            continue
        for m in messages:
            errors["no role or content"] += "role" not in m or "content" not in m
            errors["unknown key"] += any(
                key not in ("role", "content", "name", "function_call", "weight") for key in m
            )
            errors["unknown role"] += m.get("role") not in ("system", "user", "assistant", "function")
            content = m.get("content")
            errors["no text"] += (not content and not m.get("function_call")) or not isinstance(content, str)
        errors["no answer"] += not any(m.get("role") == "assistant" for m in messages)

    def tokens(text: str) -> int:
        return len(encoding.encode(text, disallowed_special=()))

    missing: Counter[str] = Counter()
    sizes: list[int] = []
    lengths: list[int] = []
    answers: list[int] = []
    for row in rows:
        messages = row["messages"]
        for role in ("system", "user"):
            missing[role] += not any(m["role"] == role for m in messages)
        sizes.append(len(messages))
        count = 3
        for m in messages:
            count += 3
            for key, value in m.items():
                count += tokens(value) + (key == "name")
        lengths.append(count)
        answers.append(sum(tokens(m["content"]) for m in messages if m["role"] == "assistant"))
    for values in (sizes, lengths, answers):
        for figure in (min, max, np.mean, np.median, lambda v: np.quantile(v, (0.1, 0.9))):
            figure(values)
    sum(min(4096, length) for length in lengths)
    assert not errors.total()
    return sum(lengths), sum(answers)


def uncounted(file: str) -> tuple[int, int]:
    from orchestrate.data.operations import check as checking

    checking.check({"train": file})
    return 0, 0


def together(file: str) -> tuple[int, int]:
    from together.lib.utils.files import check_file

    assert check_file(file)["is_check_passed"]
    return 0, 0


# -- measuring


def one(way: str, file: str) -> None:
    """Runs in a process of its own. The peak is its own and that of all workers, each as large as the
    largest: what workers share is counted for each."""
    from orchestrate.data.passes import cores

    ways: dict[str, Callable[[str], tuple[int, int]]] = {
        "check": check,
        "cookbook": cookbook,
        "sampled": sampled,
        "uncounted": uncounted,
        "together": together,
    }
    tokens, trained = ways[way](file)
    own, workers = (
        resource.getrusage(kind).ru_maxrss / 1024 for kind in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    peak = own + workers * cores()
    print(json.dumps({"tokens": tokens, "trained": trained, "peak_mb": peak}))


def measure(way: str, file: Path, cache: Path) -> dict[str, float]:
    home = cache / "home"
    for kept in home.glob("counts/*"):
        if kept.suffix in (".counts", ".seen", ".ranges"):
            kept.unlink()  # each round counts anew
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, str(file)],
        env=os.environ | {"TIKTOKEN_CACHE_DIR": str(cache), "ORCHESTRATE_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": wall, "cpu_s": cpu, **json.loads(done.stdout)}


def tiktoken_cache(folder: Path) -> None:
    package = find_spec("bpe_openai")
    if package is None or package.origin is None:
        raise SystemExit("pip install bpe-openai")
    packed = (Path(package.origin).parent / "data" / "o200k_base.tiktoken.gz").read_bytes()
    (folder / hashlib.sha1(URL.encode()).hexdigest()).write_bytes(gzip.decompress(packed))


def made(folder: Path, megabytes: int, text: str | None) -> tuple[Path, int]:
    """The file and its rows; in a process of its own, as a child's peak of memory is at least what its parent
    held at the fork."""
    file = folder / "rows.jsonl"
    more = ["--text", text] if text else []
    subprocess.run([sys.executable, __file__, "--make", str(megabytes), str(file), *more], check=True)
    with file.open("rb") as opened:
        return file, sum(1 for _ in opened)


def compare(folder: Path, megabytes: int, rounds: int, text: str | None) -> list[dict[str, object]]:
    file, rows = made(folder, megabytes, text)
    size = file.stat().st_size / 1e6
    seen: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            seen[way].append(measure(way, file, folder))
    counts = {(run["tokens"], run["trained"]) for way in ("check", "cookbook") for run in seen[way]}
    if len(counts) > 1:
        raise SystemExit(f"the ways count differently: {counts}")
    [(exact, _)] = counts
    if off := [run["tokens"] for run in seen["sampled"] if abs(run["tokens"] / exact - 1) > SAMPLED_WITHIN]:
        raise SystemExit(f"{exact:,} tokens, and sampled {off}")

    def figures(way: str, name: str) -> tuple[float, float]:
        values = [run[name] for run in seen[way]]
        return min(values), median(values)

    print(f"\n{size:,.0f} MB, {rows:,} rows, {rounds} rounds; least and median of each\n")
    print("| way | wall s | CPU s | rows/s | rows per CPU s | MB/s | peak MB | times cookbook: wall, CPU |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    base = {name: figures("cookbook", name)[1] for name in ("wall_s", "cpu_s")}
    for way in WAYS:
        (wall, wall_mid), (cpu, cpu_mid) = figures(way, "wall_s"), figures(way, "cpu_s")
        print(
            f"| {way} | {wall:.2f}, {wall_mid:.2f} | {cpu:.2f}, {cpu_mid:.2f} | {rows / wall_mid:,.0f} "
            f"| {rows / cpu_mid:,.0f} | {size / wall_mid:.0f} | {figures(way, 'peak_mb')[1]:.0f} "
            f"| {base['wall_s'] / wall_mid:.1f}, {base['cpu_s'] / cpu_mid:.1f} |"
        )
    file.unlink()
    return [
        {"mb": size, "rows": rows, "way": way, "alone": False, **run} for way in WAYS for run in seen[way]
    ]


def growth(folder: Path, sizes: list[int], text: str | None) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    print("\ncheck alone\n\n| MB | rows | wall s | CPU s | MB per CPU s | peak MB |")
    print("|---:|---:|---:|---:|---:|---:|")
    for megabytes in sizes:
        file, rows = made(folder, megabytes, text)
        run, size = measure("check", file, folder), file.stat().st_size / 1e6
        print(
            f"| {size:,.0f} | {rows:,} | {run['wall_s']:.1f} | {run['cpu_s']:.1f} "
            f"| {size / run['cpu_s']:.0f} | {run['peak_mb']:.0f} |",
            flush=True,
        )
        results.append({"mb": size, "rows": rows, "way": "check", "alone": True, **run})
        file.unlink()
    return results


TOLD = {
    "check": "`orchestrate data check`: all problems, exact counts, portability",
    "cookbook": "OpenAI's cookbook method (tiktoken)",
    "sampled": "`orchestrate data check FILE --tokens sampled`: counts with an interval",
    "uncounted": "`orchestrate data check` without counting",
    "together": "Together's `check_file`: counts no tokens",
}


def table(figures: dict[str, Any]) -> str:
    """Markdown: the median of each way's rounds, and of check alone what it took by size. On a machine that
    does other things wall time says nothing, and is left out."""
    clocks = ({"wall_s": "second"} if figures["load"] <= 1 else {}) | {"cpu_s": "CPU second"}
    lines = ["{machine}, load {load}, Python {python}, {day}".format(**figures)]
    beside = [run for run in figures["results"] if not run["alone"]]
    if beside:
        of = {way: [run for run in beside if run["way"] == way] for way in WAYS}
        lines[0] += f"; {beside[0]['mb']:,.0f} MB, {beside[0]['rows']:,} rows, rounds: {len(of['check'])}."
        heads = [*(f"{told}s" for told in clocks.values()), "MB per CPU second", "peak MB"]
        heads += [f"times the cookbook by {told}s" for told in clocks.values()]
        lines += ["", f"| | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
        base = {clock: median(run[clock] for run in of["cookbook"]) for clock in clocks}
        for way, runs in of.items():
            took = {clock: median(run[clock] for run in runs) for clock in clocks}
            cells = [TOLD[way], *(f"{took[clock]:.1f}" for clock in clocks)]
            cells += [f"{runs[0]['mb'] / took['cpu_s']:.0f}", f"{median(r['peak_mb'] for r in runs):,.0f}"]
            cells += [f"{base[clock] / took[clock]:.1f}" for clock in clocks]
            lines.append(f"| {' | '.join(cells)} |")
    alone = [run for run in figures["results"] if run["alone"]]
    if alone:
        heads = ["MB", "rows", *(f"{told}s" for told in clocks.values()), "MB per CPU second", "peak MB"]
        lines += ["", f"| {' | '.join(heads)} |", f"|{'---:|' * len(heads)}"]
    for run in alone:
        cells = [f"{run['mb']:,.0f}", f"{run['rows']:,}", *(f"{run[clock]:.1f}" for clock in clocks)]
        cells += [f"{run['mb'] / run['cpu_s']:.0f}", f"{run['peak_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--size", type=int, default=100, help="MB, for the ways side by side; 0 leaves them out"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", default="", help="MB, comma-separated, for check alone")
    parser.add_argument("--text", help="take the text from the files in this folder")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        return one(given.way, given.file)
    if given.make:
        return make(Path(given.file), given.make, given.text)
    from measured_on import about, write

    machine = about()
    print("{machine}, Python {python}, load {load}".format(**machine))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiktoken_cache(folder)
        results = compare(folder, given.size, given.rounds, given.text) if given.size else []
        if given.growth:
            results += growth(folder, [int(size) for size in given.growth.split(",")], given.text)
    if given.json:
        write(given.json, {**machine, "results": results})


if __name__ == "__main__":
    main()
