"""docs/guide.md on a small project: every command that the page names runs, with its placeholders filled in.
A command that no step here covers, and no test that is named here, fails."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chat_host import chat_host, order_row
from tests.documented import environment
from tests.e2e.test_pages import Machine, hosts  # noqa: F401  the fixture too
from tests.paths import ROOT

from orchestrate.sandbox.server import Sandbox

pytestmark = pytest.mark.slow

GUIDE = ROOT / "docs" / "guide.md"
TRAFFIC = '--traffic "20k req/day, 900 in, 150 out"'
STEPS: list[tuple[str, str]] = [
    ("orchestrate demo --files-only .", ""),
    (
        "orchestrate advise few.jsonl --measure local=tiny-chat --test test.small.jsonl --target 0.9"
        " --metric exact_match --shots 2 --limit 3 --yes",
        "80% of the target of 0.9",
    ),
    ("orchestrate advise train.jsonl --base-score 0.8 --target 0.9 --goal format", "80%"),
    ("orchestrate advise few.jsonl --private", "few-shot"),
    (f"orchestrate quote {TRAFFIC}", "over 6 months"),
    (f"orchestrate advise train.jsonl --goal domain --latency-ms 300 {TRAFFIC}", "1,000-5,000"),
    ("orchestrate check --set private=true", "local: ready"),
    ("orchestrate plan --set adapter=full -p local", "gradients"),
    ("orchestrate plan --set adapter=lora -p local", "optimi"),
    ("orchestrate plan --set adapter=qlora --gpu-memory 80GB -p local", "fits in the available"),
    ("orchestrate data score train.jsonl", "duplicate"),
    ("orchestrate data select train.jsonl --keep 0.5 --by length -o best.jsonl", "300 rows"),
    ("orchestrate data check few.jsonl", "ready"),
    (
        "orchestrate data generate few.jsonl --model writer --reasoning --for-model tiny-chat --base-url HOST"
        " --rows 3 --parallel 1 -o made.jsonl --yes",
        "3 rows",
    ),
    (
        "orchestrate data convert tickets.jsonl --to openai --thread ticket --role from --text text"
        " --assistant agent --user customer -o talks.jsonl",
        "talks.jsonl",
    ),
    ("orchestrate data split few.jsonl 80/10/10", "80.0%"),
    ("orchestrate submit small.yaml --provider openai --watch --yes", "succeeded"),
    ("orchestrate plan small.yaml --suggest", "adapter.r"),
    ("orchestrate sweep small.yaml --suggest -p together --trials 1 --yes", "learning_rate"),
    ("orchestrate prices list --method gpu_rental", "runpod"),
    ("orchestrate quote small.yaml", "together"),
    ("orchestrate check small.yaml", "dedicated GPUs"),
    ("orchestrate submit small.yaml --provider local --watch --yes", "succeeded"),
    (
        "orchestrate eval RUN --metrics exact_match,token_f1 --on here --base-precision both"
        " --max-tokens 8 --yes",
        "loading the adapter took",
    ),
    ("orchestrate regress RUN --probes general-text --limit 2 --yes", "general-text"),
    ("orchestrate review --plan", "ratings"),
    ("orchestrate ab size --rate 0.6 --gain 0.03 --share 10", "users"),
    ('orchestrate quote --traffic "1M req/day, 900 in, 150 out" --compare-with gpt-4.1', "gpt"),
]
"""A command, and what it prints among other things."""
ELSEWHERE = {
    "orchestrate data curve SPEC -p local": ("tests/cli/test_curve.py", '"data", "curve", "-p", "local"'),
    "orchestrate data curve SPEC -p local --compare best,random": ("tests/cli/test_curve.py", '"--compare"'),
    "orchestrate review --write FILE --raters ann,bo --overlap 0.2": (
        "tests/cli/test_review.py",
        '"--write"',
    ),
    "orchestrate review RUN --raters ann,bo,cy": ("tests/cli/test_review.py", 'run_id, "--raters"'),
    "orchestrate data review FILE": (
        "tests/cli/test_data_generate_and_review.py",
        '"data", "review", "rows.jsonl"',
    ),
    "orchestrate serve RUN": ("tests/cli/serving.py", '"serve", run'),
    "orchestrate export RUN DIR --to vllm": ("tests/unit/serving/test_export.py", '"vllm"'),
    "orchestrate merge RUN RUN -o DIR": ("tests/unit/serving/test_combining.py", "combine"),
    "orchestrate verify RUN": ("tests/cli/test_tuned_models.py", '"verify", run'),
    "orchestrate watch RUN --cancel-stalled": ("tests/faults/store/test_stalls.py", "--cancel-stalled"),
    "orchestrate spending --fail-if-idle": ("tests/cli/test_spending_command.py", '"--fail-if-idle"'),
}
"""Those that train several models, serve until interrupted, or need a fault: the test that runs each."""


def named() -> list[str]:
    """The commands of the page's tables."""
    text = GUIDE.read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"`(orchestrate [^`\n]+)`", text)))


def covers(run: str, written: str) -> bool:
    """Whether `run` is what the page has `written`, perhaps with more options. Words in capitals are
    placeholders."""
    wanted, words = shlex.split(written), shlex.split(run)
    path = [word for word in wanted if not word.startswith("-")][:2]
    if words[: len(path)] != path and words[:2] != wanted[:2]:
        return False
    flat = "\0".join(words) + "\0"
    for word, before in zip(wanted, ["", *wanted], strict=False):
        if word.isupper():
            continue
        if before.startswith("--") and not word.startswith("-"):
            word = f"{before}\0{word}"
        if f"{word}\0" not in flat:
            return False
    return True


def test_every_command_of_the_page_is_run_here() -> None:
    lines = [line for line, _ in STEPS]
    open_ = [written for written in named() if not any(covers(line, written) for line in lines)]
    assert sorted(open_) == sorted(ELSEWHERE)
    for file, words in ELSEWHERE.values():
        assert words in (ROOT / file).read_text(encoding="utf-8"), file
    assert len(named()) > 30 and not covers(
        "orchestrate eval RUN --on here", "orchestrate eval RUN --on host"
    )


def test_the_page_has_the_points_of_the_guide_in_their_order() -> None:
    rows = re.findall(r"^\| (\d+) \| [^|]+ \| ([^|]+) \|$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, 29))
    assert all("`orchestrate " in command for _, command in rows)


@pytest.fixture
def project(tmp_path: Path, hosts: Sandbox) -> Machine:  # noqa: F811
    folder = tmp_path / "project"
    folder.mkdir()
    talk = [(f"t{n}", who, f"{who} {n}") for n in range(6) for who in ("customer", "agent")]
    lines = [json.dumps({"ticket": t, "from": who, "text": text}) + "\n" for t, who, text in talk]
    (folder / "tickets.jsonl").write_text("".join(lines))
    for name, first, rows in (("few", 0, 40), ("validation.small", 100, 12), ("test.small", 200, 6)):
        (folder / f"{name}.jsonl").write_text("".join(f"{order_row(first + n)}\n" for n in range(rows)))
    spec = {
        "model": dict.fromkeys(("together", "fireworks"), "qwen3.5-9b")
        | {"local": "tiny-chat", "openai": "gpt-4.1-mini"},
        "train": "few.jsonl",
        "validation": "validation.small.jsonl",
        "test": "test.small.jsonl",
        "epochs": 1,
        "batch_size": 20,
        "provider_options": {"local": {"threads": 1}},
    }
    (folder / "small.yaml").write_text(json.dumps(spec))
    return Machine(folder, environment(tmp_path) | hosts.env)


def thinking() -> Iterator[str]:
    for number in range(1000, 2000):
        row = json.loads(order_row(number))
        row["messages"][1]["reasoning"] = f"The order number is {number}; the goods come after it."
        yield json.dumps(row)


@pytest.mark.parametrize("part", ["data", "hosts", "here"])
def test_each_command_applies_its_claim(project: Machine, part: str) -> None:
    known, rows = dict[str, str](), thinking()
    with chat_host() as writer:
        writer.writes = lambda _, __: "\n".join(next(rows) for _ in range(5))
        known["HOST"] = writer.url
        for line, words in (STEPS[0], *(step for step in STEPS[1:] if part_of(step[0]) == part)):
            done = project.run(filled(line, known), codes=CODES.get(line.split()[1], (0,)))
            told = " ".join((done.out + done.err).split())
            assert words in told, f"{line}\n{done.out}\n{done.err}"
            if line.startswith("orchestrate submit"):
                known["RUN"] = done.out.strip().splitlines()[-1]


def part_of(line: str) -> str:
    """Several tests, so that each ends in time on a busy machine."""
    if " RUN" in line or "submit small.yaml --provider local" in line:
        return "here"
    return "hosts" if "small.yaml" in line or " quote " in line else "data"


CODES = {"check": (0, 1), "regress": (0, 1)}
"""What is not fit for a backend or forgotten is told by the exit code."""


def filled(line: str, known: dict[str, str]) -> str:
    return " ".join(known.get(word, word) for word in line.split(" "))
