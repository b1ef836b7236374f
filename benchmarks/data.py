"""How fast training data is checked, beside what people use today, on the same text in one run.

    python benchmarks/data.py                    the table, on 100 MB
    python benchmarks/data.py --sizes 1,10,100,1000,2000      how it grows, and the peak of memory

Three ways, each in a process of its own:

- `check`: `orchestrate data check` for four backends: format, roles, tools, exact o200k counts, duplicates,
  contradictions, secrets, personal data, damage, portability.
- `cookbook`: the loop of OpenAI's cookbook "Data preparation and analysis for chat model fine-tuning":
  format errors and tiktoken counts, of one encoding.
- `together`: `together.lib.utils.files.check_file`, which counts no tokens.

The text is cut from the Python files and documents of this environment, with a fixed seed. Compare CPU
seconds: the time on the wall moves with what else the machine does. Needs the package bpe-openai, for
tiktoken's own vocabulary without a network.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

URL = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
ROW_BYTES = 3_100


def texts(limit: int = 60_000_000) -> str:
    """About `limit` characters from the files of this environment, in the order of their paths."""
    pieces: list[str] = []
    size = 0
    for root in (sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")):
        for file in sorted(Path(root).rglob("*")):
            if file.suffix not in (".py", ".md", ".rst", ".txt") and file.name != "METADATA":
                continue
            try:
                piece = file.read_text()
            except (UnicodeDecodeError, OSError):
                continue
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                return "\n".join(pieces)
    return "\n".join(pieces)


def make(file: Path, megabytes: int, source: str) -> None:
    """Chat rows of about `ROW_BYTES`, with one or two turns."""
    r = random.Random(7)
    size = 0

    def cut(length: int) -> str:
        at = r.randrange(len(source) - length)
        return source[at : at + length].strip() or "."

    with file.open("w", encoding="utf-8") as out:
        while size < megabytes * 1_000_000:
            messages = [{"role": "system", "content": "You are a helpful assistant."}]
            for _ in range(r.choice((1, 1, 2))):
                messages.append({"role": "user", "content": cut(r.randint(80, 900))})
                messages.append({"role": "assistant", "content": cut(r.randint(300, ROW_BYTES))})
            line = json.dumps({"messages": messages}, ensure_ascii=False)
            size += out.write(line + "\n") + len(line.encode()) - len(line)


def check(file: str) -> int:
    from orchestrate.data.checking import Options
    from orchestrate.data.checking import check as run

    return run({"train": file}, Options(tokenizer="o200k")).files[0].tokens or 0


def cookbook(file: str) -> int:
    import tiktoken

    encoding = tiktoken.get_encoding("o200k_base")

    def count(messages: list[dict[str, str]]) -> int:
        total = 0
        for message in messages:
            total += 3
            for key, value in message.items():
                total += len(encoding.encode(value, disallowed_special=()))
                if key == "name":
                    total += 1
        return total + 3

    with Path(file).open(encoding="utf-8") as opened:
        rows = [json.loads(line) for line in opened]
    errors: dict[str, int] = {}

    def wrong(name: str) -> None:
        errors[name] = errors.get(name, 0) + 1

    for row in rows:
        messages = row.get("messages")
        if not messages:
            wrong("missing_messages_list")
            continue
        for message in messages:
            if "role" not in message or "content" not in message:
                wrong("message_missing_key")
            if any(k not in ("role", "content", "name", "function_call", "weight") for k in message):
                wrong("message_unrecognized_key")
            if message.get("role") not in ("system", "user", "assistant", "function"):
                wrong("unrecognized_role")
            if not message.get("content") or not isinstance(message["content"], str):
                wrong("missing_content")
        if not any(message.get("role") == "assistant" for message in messages):
            wrong("example_missing_assistant_message")
    return sum(count(row["messages"]) for row in rows)


def together(file: str) -> int:
    from together.lib.utils.files import check_file

    assert check_file(file)["is_check_passed"]
    return 0


WAYS: dict[str, Callable[[str], int]] = {"check": check, "cookbook": cookbook, "together": together}


def measure(way: str, file: Path, cache: Path) -> dict[str, float]:
    """Runs one way in a child. `peak_mb` is the child's own peak and the largest of its workers' together."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, "--way", way, str(file)],
        env=os.environ | {"TIKTOKEN_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    told = json.loads(done.stdout)
    return {"wall_s": wall, "cpu_s": cpu, **told}


def tiktoken_cache(folder: Path) -> None:
    package = find_spec("bpe_openai")
    if package is None or package.origin is None:
        raise SystemExit("pip install bpe-openai")
    packed = (Path(package.origin).parent / "data" / "o200k_base.tiktoken.gz").read_bytes()
    (folder / hashlib.sha1(URL.encode()).hexdigest()).write_bytes(gzip.decompress(packed))


def table(sizes: list[int], ways: list[str]) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiktoken_cache(folder)
        print("| MB | way | rows | wall s | CPU s | MB/s | MB per CPU s | rows/s | peak MB |")
        print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
        for megabytes in sizes:
            file = folder / "rows.jsonl"
            # In a process of its own: a child's peak of memory is at least what its parent held at the fork.
            subprocess.run([sys.executable, __file__, "--make", str(megabytes), str(file)], check=True)
            with file.open("rb") as opened:
                rows = sum(1 for _ in opened)
            counts: set[float] = set()
            for way in ways:
                seen = measure(way, file, folder)
                size = file.stat().st_size / 1e6
                if seen["tokens"]:
                    counts.add(seen["tokens"])
                print(
                    f"| {size:,.0f} | {way} | {rows:,} | {seen['wall_s']:.1f} | {seen['cpu_s']:.1f} "
                    f"| {size / seen['wall_s']:.1f} | {size / seen['cpu_s']:.1f} "
                    f"| {rows / seen['wall_s']:,.0f} | {seen['peak_mb']:.0f} |",
                    flush=True,
                )
                results.append({"mb": size, "way": way, "rows": rows, **seen})
            if len(counts) > 1:
                raise SystemExit(f"the ways count differently: {counts}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", default="100", help="MB, comma-separated")
    parser.add_argument("--ways", default="check,cookbook,together")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--make", type=int, help=argparse.SUPPRESS)
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way:
        tokens = WAYS[given.way](given.file)
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 1024
        print(json.dumps({"tokens": tokens, "peak_mb": peak}))
        return
    if given.make:
        make(Path(given.file), given.make, texts())
        return
    results = table([int(s) for s in given.sizes.split(",")], given.ways.split(","))
    if given.json:
        given.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
