"""inspect: what a file holds."""

from __future__ import annotations

from pathlib import Path

from tests.paths import BUNDLED, DATASETS
from tests.unit.data.operations.chat_files import chat, write

from orchestrate.data import Dataset
from orchestrate.data.operations.inspect import inspect

ORDERS = BUNDLED / "orders" / "train.jsonl"


def test_inspect(tmp_path: Path) -> None:
    lines = [
        chat(f"How is the weather in town number {i}?", "It is a fine day " * (i % 7 + 1)) for i in range(50)
    ]
    lines += [chat("a", "b", "c", "d"), lines[0], "{broken"]
    file = write(lines, tmp_path / "a.jsonl")
    report = inspect(file)
    count = Dataset.open(file).tokens("o200k")
    assert (report.rows, report.rows_with_errors, report.duplicates) == (52, 1, 1)
    assert report.tokens == count.tokens and report.epoch_tokens["3"] == 3 * count.tokens
    assert sum(b.count for b in report.histogram) == 52
    assert report.histogram[0].low == min(count.lengths) and report.histogram[-1].high == count.longest
    assert report.turns == {"1": 51, "2": 1} and report.roles == {"user": 53, "assistant": 53}
    assert report.longest[0].tokens == count.longest
    assert report.languages["en"] > 40
    assert report.problems == {"invalid-json": 1} and "300" in report.guidance


def test_inspect_of_tools_and_pairs() -> None:
    tools = inspect(str(DATASETS / "formats" / "good" / "openai_tools.jsonl"))
    assert tools.tools == {"weather": 2} and not tools.tokens_exact
    pairs = inspect(str(DATASETS / "formats" / "good" / "trl_preference.jsonl"))
    assert sum(b.count for b in pairs.histogram) == 6 and {r.row for r in pairs.longest} <= {1, 2, 3}


def test_the_language_of_a_few_letters_is_not_guessed(tmp_path: Path) -> None:
    lines = [
        chat("q1", "a1"),
        chat("Where does the train to the mountains leave?", "From platform two."),
    ]
    assert inspect(write(lines, tmp_path / "a.jsonl")).languages == {"too short": 1, "en": 1}


def test_a_language_needs_evidence(tmp_path: Path) -> None:
    """Of short orders in English the detector takes some for Catalan."""
    assert set(inspect(str(ORDERS)).languages) <= {"en", "uncertain"}
    german = "Wann f\u00e4hrt der n\u00e4chste Zug in die Berge ab, und muss ich unterwegs umsteigen?"
    lines = [
        *ORDERS.read_text().splitlines()[:60],
        chat(german, "Um neun Uhr, ohne Umsteigen, von Gleis zwei."),
    ]
    lines += [
        chat(
            "\u3053\u306e\u8ab2\u984c\u306f\u3044\u3064\u7d42\u308f\u308a\u307e\u3059\u304b",
            "\u660e\u65e5\u3067\u3059",
        )
    ]
    told = inspect(write(lines, tmp_path / "a.jsonl")).languages
    assert (told["de"], told["ja"]) == (1, 1) and set(told) <= {"en", "de", "ja", "uncertain"}
    assert told["en"] >= 55 and sum(told.values()) == 62


def test_inspect_names_the_formats_of_a_mixed_file(tmp_path: Path) -> None:
    lines = [
        chat("a", "b"),
        chat("c", "d"),
        '{"text": "x"}',
        '{"prompt": "a", "completion": "b"}',
        '{"x": 1}',
    ]
    report = inspect(write(lines, tmp_path / "a.jsonl"))
    assert report.formats == {"openai-chat": 2, "text": 1, "prompt-completion": 1}
    assert report.problems == {"mixed-format": 2, "unknown-format": 1}
