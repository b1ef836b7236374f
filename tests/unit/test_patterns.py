"""No regular expression over the texts of others takes more than about the square of their length."""

from __future__ import annotations

import ast
import importlib
import re
import time
import warnings
from collections.abc import Callable, Iterator

import pytest
from tests.paths import ROOT

from orchestrate import settings
from orchestrate.data.rows import content
from orchestrate.data.tokens import calls as notations
from orchestrate.evaluation.metrics import structured
from orchestrate.local.objectives import graders

with warnings.catch_warnings(
    action="ignore", category=DeprecationWarning
):  # of sre_constants, which it reads
    from regexploit.ast.sre import SreOpParser
    from regexploit.redos import find

SOURCE = ROOT / "src" / "orchestrate"
CALLS = {"compile", "match", "search", "sub", "subn", "findall", "finditer", "fullmatch", "split"}
OWN = {
    "orchestrate.data.rows.content": "its tables of patterns, which are scanned beside",
    "orchestrate.data.tokens.chat_templates": "one escaped word",
    "orchestrate.data.tokens": "escaped words",
    "orchestrate.evaluation.metrics.text": "the pattern of a `regex:` metric, which the user gives",
    "orchestrate.evaluation.regression": "a probe's own pattern",
    "orchestrate.local.answers.forms": "escaped tokens",
    "orchestrate.local.model.adapters": "target modules that the user names",
    "orchestrate.local.plan.memory": "target modules that the user names",
    "orchestrate.local.plan": "target modules that the user names",
    "orchestrate.core": "a field's name",
    "orchestrate.places.kinds._skypilot": "names of variables, of a file of its own",
    "orchestrate.providers.calls": "an escaped ref",
    "orchestrate.providers.compatible": "a pattern of the user's description of a host",
    "orchestrate.sandbox.fireworks": "an escaped pattern",
    "orchestrate.sandbox.front": "a fault's path, which a test gives",
    "orchestrate.sandbox.openai.dialect": "the pattern of a description",
    "orchestrate.serving.export.folder": "an escaped name",
}
"""Modules that make patterns of what they are given, and of what."""


def written(flags: list[ast.expr]) -> int:
    text = " | ".join(map(ast.unparse, flags))
    return int(eval(text, {"re": re})) if re.fullmatch(r"re\.[A-Z]+(?: \| re\.[A-Z]+)*", text) else 0


def patterns() -> Iterator[tuple[str, str | bytes, int]]:
    """Where each one stands, with its flags; those that are put together are put together by their module."""
    for path in sorted(SOURCE.rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and (node.func.value.id, node.func.attr in CALLS) == ("re", True)
        ]
        if not calls:
            continue
        name = ".".join(("orchestrate", *path.relative_to(SOURCE).with_suffix("").parts))
        module = importlib.import_module(name.removesuffix(".__init__"))
        for call in calls:
            flags = [*call.args[1:], *(word.value for word in call.keywords if word.arg == "flags")]
            try:
                pattern = eval(ast.unparse(call.args[0]), dict(vars(module)))
            except NameError:
                assert name.removesuffix(".__init__") in OWN, f"{name}:{call.lineno}"
                continue
            yield f"{name}:{call.lineno}", pattern, written(flags)
    for one in content.PATTERNS:
        for text in (one.regex, content._sieve(one), one.before):
            if text is not None:
                yield f"content: {one.what}", text, 0
    yield "mojibake: damaged", content._DAMAGED, 0
    yield "mojibake: run", content._RUN, 0


def slow(pattern: str | bytes, flags: int) -> list[str]:
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    return [str(one) for one in find(SreOpParser().parse_sre(text, flags))]


@pytest.mark.slow
def test_no_pattern_takes_the_cube_of_a_text() -> None:
    """By regexploit, which finds what can repeat one character in three places."""
    assert slow(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL), "it finds one that took minutes"
    found = list(patterns())
    assert len(found) > 100
    assert {place: bad for place, text, flags in found if (bad := slow(text, flags))} == {}


def graded(text: str) -> None:
    grader = {"type": "string_check", "operation": "like", "input": text, "reference": "x"}
    graders.refusal(grader, allow_code=False)
    graders.fill(text.replace("}}", "}"), {}, {})


@pytest.mark.parametrize(
    ("read", "piece"),
    [
        (graded, "{{"),
        (graded, "{{ "),
        (graded, "{{item"),
        (graded, "{{ item.a }"),
        (notations.of_json, "```json "),
        (structured.unfenced, "```\n \n "),
        (settings.redact_text, "sk-"),
    ],
)
def test_a_text_of_twice_the_length_takes_about_twice_as_long(
    read: Callable[[str], object], piece: str
) -> None:
    """Squares take four times as long; the best of several tries, since others use the machine too."""

    def seconds(times: int) -> float:
        text = "{{" + " " * times + piece * times
        tries = list[float]()
        for _ in range(5):
            begun = time.process_time()
            read(text)
            tries.append(time.process_time() - begun)
        return min(tries)

    assert seconds(400_000) < 8 * seconds(100_000) + 0.05
