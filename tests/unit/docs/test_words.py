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


_IMPERATIVES = """
    accept act add adopt advance agree align allocate allow answer append apply approve archive ask
    assert assign attach average begin bill bind block book bound bring bucket build cache calculate
    calibrate call cancel carry catch change charge chat check choose claim clamp classify clean
    clear close collect combine come compare compile complete compute confirm connect consume
    continue convert copy correct count cover create cut deal decide declare decode decompress
    default delete deliver deploy derive describe detach detect diff discard display distribute
    divide do download drain draw drop encode encrypt end enforce enter escape estimate evaluate
    examine exchange exclude execute exit expand expire explain export express extend extract fail
    fetch fill filter find finish fit fix flag flatten flush fold follow force forget format forward
    free freeze gather generate get give go grade group guard guess handle hash have hold identify ignore
    import include increase index infer initialize inject insert inspect install interpolate invert
    issue iterate join judge keep kill label launch lay learn leave let lift limit link list load
    locate lock log look lower make map mark mask match measure merge migrate mix monitor mount move
    multiply name normalize note notify number observe open order override pack pad pair parse
    partition pass pause pay perform permit pick place plan play plot point poll post predict prefix
    prepare price print process produce promote prompt propose protect prove provide prune publish
    pull push put quantize query queue quote raise rank rate read rebuild receive recommend
    reassign recompute reconcile record recover redact reduce refer refresh refuse register reject
    release reload remember remove rename render repeat replace replay report represent request
    require reserve
    reset resize resolve respond restart restore resume retry return reuse reveal revert review
    revoke rewrite roll rollback rotate round route run sample save say scale scan schedule score
    search see select send separate serialize serve set settle shard share shift shorten show shrink
    shut sign simulate skip sleep solve sort split start state stop store stream strip submit
    substitute subtract suggest sum summarize supply support suspend swap switch sync take talk tell
    terminate test throw time tokenize total track train transfer transform translate treat trim
    truncate try turn undo unload unlock unpack unregister unwrap update upgrade upload use validate
    value verify view wait walk warm warn watch weigh withdraw wrap write yield zip
"""
IMPERATIVES = frozenset(_IMPERATIVES.split())
"""With which docstrings of public functions begin, in this form or in the third person ("Writes")."""


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


def _is_verb(word: str) -> bool:
    forms = {word, word.removesuffix("s"), word.removesuffix("es"), f"{word.removesuffix('ies')}y"}
    return bool(forms & IMPERATIVES)


@pytest.mark.parametrize(
    ("said", "verb"),
    [("Return it.", True), ("Carries it.", True), ("Passes it.", True), ("Whether it is.", False)],
)
def test_a_verb_is_known(said: str, verb: bool) -> None:
    assert _is_verb(said.split()[0].lower()) == verb


def test_docstrings_of_public_functions_start_with_a_verb() -> None:
    found = [
        f"{file}: {node.name}: {said.split()[0]}"
        for file, nodes in sources.nodes().items()
        for node in nodes
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_")
        if not any("property" in ast.unparse(one) for one in node.decorator_list)
        if (said := ast.get_docstring(node)) and not _is_verb(said.split()[0].strip(",.:").lower())
    ]
    assert not found, "\n".join(found)
