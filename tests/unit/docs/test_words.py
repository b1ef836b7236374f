"""What users read is in the field's English: each phrase below was found hard to read, and may only become
rarer."""

from __future__ import annotations

import ast
import re

import pytest
from tests import sources

from orchestrate.commands import COMMANDS

MOST = {
    r"falls? silent": 0,
    r"is no (?:list|number|day|file|label|JSON|folder|object)": 4,
    r"nobody knows": 0,
    r"that there are not": 0,
    r"dearer": 1,
    r"by the hour": 6,
    r"at any time": 0,
    r"heeded": 0,
    r"at hand": 0,
    r"as long as wanted": 1,
    r"are told": 11,
    r"is told": 15,
    r"that have gone": 0,
    r"is another one": 3,
    r"nobody has": 3,
    r"by itself": 2,
    r"hardly": 1,
    r"no (?:run|backend|model|key|probe|metric|engine|contender) is called": 0,
}
"""Phrase -> how often it stands in strings and docstrings. Where one is gone, its line goes too."""
VERBS = frozenset(
    [
        "Cancel",
        "Chat",
        "Check",
        "Compare",
        "Delete",
        "Deploy",
        "Download",
        "Estimate",
        "Export",
        "Follow",
        "Give",
        "Import",
        "Inspect",
        "Let",
        "List",
        "Log",
        "Measure",
        "Merge",
        "Move",
        "Open",
        "Pause",
        "Print",
        "Prove",
        "Rebuild",
        "Recommend",
        "Record",
        "Repeat",
        "Resume",
        "Run",
        "Serve",
        "Set",
        "Show",
        "Split",
        "Start",
        "Submit",
        "Take",
        "Train",
        "Try",
        "Update",
        "Watch",
        "Write",
    ]
)


def texts() -> list[str]:
    return [
        " ".join(node.value.split())
        for nodes in sources.nodes().values()
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_phrases_that_are_hard_to_read_become_rarer() -> None:
    anyone = re.compile("|".join(MOST).lower())  # one pass over all texts; what it finds is looked at again
    found = [text for text in texts() if anyone.search(text.lower())]
    counts = {
        phrase: [(text, len(re.findall(rf"(?i)\b{phrase}", text))) for text in found] for phrase in MOST
    }
    told = [
        f"{phrase}: {n} now:\n" + "\n".join(text for text, count in hits if count)
        for phrase, hits in counts.items()
        if (n := sum(count for _, count in hits)) > MOST[phrase]
    ]
    assert told == []


@pytest.mark.parametrize("name", [name for _, name, _, _ in COMMANDS])
def test_each_command_says_what_it_does_in_one_line(name: str) -> None:
    [said] = [said for _, known, _, said in COMMANDS if known == name]
    assert said.split()[0].strip(",") in VERBS and said.endswith(".") and len(said) <= 64, said
