"""split, dedupe, fix, inspect: sets of rows."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.paths import DATASETS
from tests.targets import hosts

from orchestrate.data import Dataset
from orchestrate.data.operations.dedupe import dedupe
from orchestrate.data.operations.fix import fix
from orchestrate.data.operations.inspect import inspect
from orchestrate.data.operations.split import parse_shares, split
from orchestrate.errors import DataError, UsageError

FIXTURES = DATASETS
BAD = FIXTURES / "formats" / "bad"
ORDERS = FIXTURES / "orders" / "train.jsonl"
SHARES = (0.8, 0.1, 0.1)


def chat(*texts: str, system: str | None = None) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]
    return json.dumps({"messages": messages})


def write(lines: list[str], file: Path) -> str:
    file.write_text("".join(line + "\n" for line in lines))
    return str(file)


def sides(folder: Path) -> dict[str, str]:
    """Each row's text -> the split that it fell into."""
    return {
        line: name
        for name in ("train", "validation", "test")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    }


# -- split ---------------------------------------------------------------------------------------------------


def test_split_holds_every_row_once_and_about_the_shares(tmp_path: Path) -> None:
    lines = [chat(f"question {i}", f"answer {i}") for i in range(2000)]
    report = split(write(lines, tmp_path / "a.jsonl"), SHARES, tmp_path / "out", near_duplicates=False)
    assert sum(part.rows for part in report.files) == 2000 == len(sides(tmp_path / "out"))
    for part, share in zip(report.files, SHARES, strict=True):
        assert part.share == pytest.approx(share, abs=0.03)


def test_split_is_stable_when_rows_are_added_and_shuffled(tmp_path: Path) -> None:
    lines = [chat(f"question {i}", f"answer {i}") for i in range(500)]
    more = lines + [chat(f"new {i}", f"answer {i}") for i in range(300)]
    random.Random(1).shuffle(more)
    split(write(lines, tmp_path / "a.jsonl"), SHARES, tmp_path / "a", near_duplicates=False)
    split(write(more, tmp_path / "b.jsonl"), SHARES, tmp_path / "b", near_duplicates=False)
    before, after = sides(tmp_path / "a"), sides(tmp_path / "b")
    assert {row: after[row] for row in before} == before


def test_seed_changes_the_split(tmp_path: Path) -> None:
    file = write([chat(f"question {i}", "a") for i in range(300)], tmp_path / "a.jsonl")
    for seed in (0, 1):
        split(file, SHARES, tmp_path / str(seed), seed=seed, near_duplicates=False)
    assert sides(tmp_path / "0") != sides(tmp_path / "1")


def test_a_conversation_stays_on_one_side(tmp_path: Path) -> None:
    """Rows unrolled turn by turn begin alike."""
    lines = [
        chat(*(f"talk {talk} turn {t}" for t in range(2 * turns)), system=f"system {talk}")
        for talk in range(150)
        for turns in (1, 2, 3)
    ]
    report = split(write(lines, tmp_path / "a.jsonl"), SHARES, tmp_path / "out", near_duplicates=False)
    where: dict[str, set[str]] = {}
    for row, side in sides(tmp_path / "out").items():
        where.setdefault(json.loads(row)["messages"][0]["content"], set()).add(side)
    assert report.groups == 150 == len(where)
    assert all(len(found) == 1 for found in where.values())
    assert set.union(*where.values()) == {"train", "validation", "test"}


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    r = random.Random(2)
    lines: list[str] = []
    for topic in range(60):
        words = [f"{topic}w{r.randrange(1000)}" for _ in range(150)]
        for copy in range(4):
            words[copy * 7] = f"changed{copy}"
            lines.append(chat(f"topic {topic} copy {copy} " + " ".join(words), "done"))
    report = split(write(lines, tmp_path / "a.jsonl"), SHARES, tmp_path / "out")
    where: dict[str, set[str]] = {}
    for row, side in sides(tmp_path / "out").items():
        topic = json.loads(row)["messages"][0]["content"].split()[1]
        where.setdefault(topic, set()).add(side)
    assert report.groups == 60 and all(len(found) == 1 for found in where.values())


@pytest.mark.parametrize("stratify", [False, True])
def test_the_order_of_the_file_moves_no_row(tmp_path: Path, stratify: bool) -> None:
    """Chains of rows, each near the next: who leads a group, and which neighbours are compared, must be a
    matter of the content."""
    r = random.Random(3)
    lines: list[str] = []
    for topic in range(80):
        words = [f"{topic}w{r.randrange(1000)}" for _ in range(120)]
        for copy in range(6):
            words[r.randrange(120)] = f"changed{copy}"
            words[r.randrange(120)] = f"again{copy}"
            lines.append(chat(f"copy {copy} of {topic} " + " ".join(words), f"label {r.randrange(3)}"))
    found: list[dict[str, str]] = []
    for turn in range(4):
        out = tmp_path / str(turn)
        report = split(write(lines, tmp_path / "a.jsonl"), SHARES, out, stratify=stratify)
        found.append(sides(out) | {"groups": str(report.groups)})
        r.shuffle(lines)
    assert found[1:] == found[:1] * 3
    assert set(found[0].values()) >= {"train", "validation", "test"}


def test_stratified_split_keeps_the_mix(tmp_path: Path) -> None:
    lines = [chat(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(400)]
    file = write(lines, tmp_path / "a.jsonl")
    report = split(file, SHARES, tmp_path / "out", stratify=True, near_duplicates=False)
    rare = {name: 0 for name in ("train", "validation", "test")}
    for row, side in sides(tmp_path / "out").items():
        rare[side] += "rare" in row
    assert [part.rows for part in report.files] == [320, 40, 40] and rare == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


@pytest.mark.parametrize(
    ("text", "shares"), [("80/10/10", (0.8, 0.1, 0.1)), ("0.9/0.1", (0.9, 0.1)), ("4:1", (0.8, 0.2))]
)
def test_shares(text: str, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == pytest.approx(shares)


@pytest.mark.parametrize("text", ["", "80", "a/b", "1/2/3/4", "-1/2", "50/0"])
def test_wrong_shares(text: str) -> None:
    with pytest.raises(UsageError, match="80/10/10"):
        parse_shares(text)


# -- dedupe --------------------------------------------------------------------------------------------------


def test_dedupe_keeps_the_first_and_logs_the_rest(tmp_path: Path) -> None:
    lines = [chat("a", "1"), chat("b", "2"), chat("a", "1").replace('": ', '":  '), chat("a", "other")]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert (report.rows, report.kept, report.exact, report.near) == (4, 3, 1, 0)
    assert [
        json.loads(row)["messages"][1]["content"] for row in (tmp_path / "out.jsonl").read_text().splitlines()
    ] == [
        "1",
        "2",
        "other",
    ]
    assert report.log is not None
    assert json.loads(Path(report.log).read_text()) == {"row": 3, "because_of": 1, "near": False}


def test_dedupe_near(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(200)]
    near = words.copy()
    near[100] = "changed"
    half = words[:100] + [f"v{i}" for i in range(100)]
    lines = [chat("q", " ".join(text)) for text in (words, near, half)]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl", near_duplicates=True)
    assert [(r.row, r.because_of, r.near) for r in report.removed] == [(2, 1, True)]
    assert Dataset.open(tmp_path / "out.jsonl").rows == 2


def test_dedupe_near_finds_what_exact_comparison_of_all_pairs_finds(tmp_path: Path) -> None:
    """Recall against Jaccard over all pairs of five-word shingles."""
    r = random.Random(5)
    texts: list[list[str]] = []
    for _ in range(120):
        base = [f"w{r.randrange(5000)}" for _ in range(120)]
        texts.append(base)
        copy = base.copy()
        for _ in range(r.choice((1, 2, 8, 40))):
            copy[r.randrange(120)] = f"x{r.randrange(5000)}"
        texts.append(copy)
    shingles = [{tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in texts]
    alike = {
        j + 1
        for i in range(0, len(texts), 2)
        for j in (i + 1,)
        if len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j]) >= 0.85
    }
    unlike = {
        j + 1
        for i in range(0, len(texts), 2)
        for j in (i + 1,)
        if len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j]) < 0.6
    }
    file = write([json.dumps({"text": " ".join(t)}) for t in texts], tmp_path / "a.jsonl")
    found = {r.row for r in dedupe(file, None, near_duplicates=True).removed}
    assert len(alike) > 30 and len(unlike) > 20
    assert len(alike & found) >= 0.95 * len(alike)
    assert not unlike & found


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = write([chat("a", "1")] * 2, tmp_path / "a.jsonl")
    report = dedupe(file, None)
    assert report.exact == 1 and report.output is None and len(list(tmp_path.iterdir())) == 1


# -- fix -----------------------------------------------------------------------------------------------------

REPAIRED = {
    "bad-role",
    "bad-content",
    "last-not-assistant",
    "weight-on-input",
    "lone-surrogate",
    "encoding",
    "mojibake",
    "control-character",
    "mixed-format",
    "duplicate-key",
}
LEFT_OUT = {
    "invalid-json": "invalid-json",
    "not-an-object": "not-an-object",
    "too-deep": "too-deep",
    "blank-line": "blank-line",
    "unknown-format": "unknown-format",
    "no-messages": "no-messages",
    "no-assistant": "no-assistant",
    "empty-content": "empty-content",
    "bad-weight": "bad-weight",
    "nothing-trained": "nothing-trained",
    "bad-tool-call": "bad-tool-call",
    "bad-arguments": "bad-arguments",
    "unanswered-call": "unanswered-call",
    "orphan-answer": "orphan-answer",
    "bad-tools": "bad-tools",
    "duplicate": "duplicate",
    "same-answers": "same-answers",
    "empty-completion": "empty-completion",
}


@pytest.mark.parametrize("code", sorted(REPAIRED))
def test_row_is_repaired(code: str, tmp_path: Path) -> None:
    report = fix(str(BAD / f"{code}.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {code: 1}
    assert report.left_out == {}
    assert Dataset.open(report.output).problems == ()
    assert report.written == report.lines


@pytest.mark.parametrize("code", LEFT_OUT)
def test_row_beyond_repair_is_left_out_and_logged(code: str, tmp_path: Path) -> None:
    report = fix(str(BAD / f"{code}.jsonl"), tmp_path / "out.jsonl")
    assert report.left_out == {LEFT_OUT[code]: 1} and report.written == report.lines - 1
    (change,) = [json.loads(line) for line in Path(report.log).read_text().splitlines()]
    assert (change["row"], change["code"], change["action"]) == (report.lines, LEFT_OUT[code], "left out")
    assert Dataset.open(report.output).rows == report.written


def test_repairs_say_the_right_thing(tmp_path: Path) -> None:
    def last(code: str) -> list[dict[str, str]]:
        report = fix(str(BAD / f"{code}.jsonl"), tmp_path / f"{code}.jsonl")
        return json.loads(Path(report.output).read_text().splitlines()[-1])["messages"]

    assert last("bad-role")[0]["role"] == "user"
    assert last("bad-content")[0]["content"] == "5"
    assert [m["role"] for m in last("last-not-assistant")] == ["user", "assistant"]
    assert last("mojibake")[0]["content"] == "Café?"
    assert last("control-character")[0]["content"] == "ab"
    assert last("duplicate-key")[0]["content"] == "Good morning"
    assert last("lone-surrogate")[0]["content"] == "\ufffd"


def test_parts_under_other_names_are_repaired(tmp_path: Path) -> None:
    parts = [
        {"type": "input_text", "text": "What?"},
        {"type": "image_url", "image_url": "https://a.example/b.png"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "A cat."}]}
    report = fix(write([json.dumps(row)], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {"bad-content": 2} and Dataset.open(report.output).problems == ()
    fixed = json.loads((tmp_path / "out.jsonl").read_text())["messages"][0]["content"]
    assert fixed == [
        {"type": "text", "text": "What?"},
        {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}},
    ]


def test_neighbours_are_joined_for_together_only(tmp_path: Path) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
        ]
    }
    file = write([json.dumps(row)], tmp_path / "a.jsonl")
    assert fix(file, tmp_path / "plain.jsonl").repaired == {}
    assert fix(file, tmp_path / "together.jsonl", hosts=hosts("together")).repaired == {"not-alternating": 1}
    messages = json.loads((tmp_path / "together.jsonl").read_text())["messages"]
    assert [m["content"] for m in messages] == ["a\n\nb", "c"]


def test_clean_file_stays_as_it_is(tmp_path: Path) -> None:
    report = fix(str(ORDERS), tmp_path / "out.jsonl")
    assert report.repaired == report.left_out == {}
    assert Dataset.open(report.output).digest == Dataset.open(ORDERS).digest


# -- inspect -------------------------------------------------------------------------------------------------


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
    tools = inspect(str(FIXTURES / "formats" / "good" / "openai_tools.jsonl"))
    assert tools.tools == {"weather": 2} and not tools.tokens_exact
    pairs = inspect(str(FIXTURES / "formats" / "good" / "trl_preference.jsonl"))
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


def test_a_file_without_a_good_row_is_neither_split_nor_deduplicated(tmp_path: Path) -> None:
    file = write(['{"messages": []}'], tmp_path / "a.jsonl")
    for attempt in (
        lambda: split(file, (0.8, 0.2), tmp_path / "s"),
        lambda: dedupe(file, tmp_path / "d.jsonl"),
    ):
        with pytest.raises(DataError, match="no good row"):
            attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


SHARED = " ".join(f"rule{i}" for i in range(120))


@pytest.mark.parametrize("form", ["system", "template", "alpaca"])
def test_what_all_rows_share_makes_no_copies_of_them(tmp_path: Path, form: str) -> None:
    r = random.Random(4)

    def row(asked: str) -> str:
        if form == "alpaca":
            return json.dumps({"instruction": SHARED, "input": asked, "output": "yes"})
        if form == "template":
            return chat(f"{SHARED}: {asked}", "yes")
        messages = [{"role": "system", "content": SHARED}, *json.loads(chat(asked, "yes"))["messages"]]
        return json.dumps({"messages": messages})

    words = [" ".join(f"w{r.randrange(5000)}" for _ in range(40)) for _ in range(60)]
    short = [" ".join(f"w{r.randrange(5000)}" for _ in range(6)) for _ in range(140)]
    lines = [row(asked) for asked in (*words, *short, words[0] + " more")]
    file = write(lines, tmp_path / "a.jsonl")
    report = dedupe(file, tmp_path / "out.jsonl", near_duplicates=True)
    assert [(found.row, found.because_of) for found in report.removed] == [(201, 1)]
    parts = split(file, SHARES, tmp_path / "out").files
    assert all(part.rows for part in parts)


def test_few_rows_with_one_system_text_are_no_copies(tmp_path: Path) -> None:
    """Too few to tell what their form is."""
    lines = [
        json.dumps({"messages": [{"role": "system", "content": SHARED}, *json.loads(one)["messages"]]})
        for one in (chat(f"a{i} b{i} c{i} d{i} e{i} f{i}", "yes") for i in range(12))
    ]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), None, near_duplicates=True)
    assert report.removed == ()


def test_rows_that_the_system_text_alone_tells_apart_are_no_copies(tmp_path: Path) -> None:
    lines = [
        json.dumps({"messages": [{"role": "system", "content": said}, *json.loads(one)["messages"]]})
        for said, one in (
            (" ".join(f"{i}w{k}" for k in range(80)), chat("Sum it up in one single word", "x"))
            for i in range(100)
        )
    ]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), None, near_duplicates=True)
    assert report.removed == ()


def test_a_split_that_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    file = write([chat(f"{SHARED} {i}", "yes") for i in range(12)], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="make 1 groups of nearly equal rows") as caught:
        split(file, SHARES, tmp_path / "out")
    assert "--no-near" in str(caught.value.fix) and not (tmp_path / "out").exists()


def wrongly_read(text: str, encoding: str) -> str:
    """As Windows does, which has no character for five bytes and takes them as they are."""
    return "".join(bytes([byte]).decode(encoding, "ignore") or chr(byte) for byte in text.encode())


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", ["Café", "a “quoted” naïve text", "it’s 5 €", "Привет", "日本語", "Zażółć"])
def test_damage_is_repaired_beside_what_is_whole(tmp_path: Path, text: str, encoding: str) -> None:
    damaged = "is damaged: é " + text
    whole = ("", "😀 for 5 €, “so” ")
    lines = [chat(before + wrongly_read(damaged, encoding), "ok") for before in whole]
    report = fix(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == {"mojibake": 2} and report.not_repaired == {}
    fixed = [
        json.loads(line)["messages"][0]["content"] for line in Path(report.output).read_text().splitlines()
    ]
    assert fixed == [before + damaged for before in whole]


@pytest.mark.parametrize("text", ["NÃO … “MINHA IRMÃ” CAFÉ” disse", "le château — «âge»"])
def test_whole_text_is_not_repaired(tmp_path: Path, text: str) -> None:
    file = write([chat(text, "ok")], tmp_path / "a.jsonl")
    report = fix(file, tmp_path / "out.jsonl")
    assert report.repaired == report.not_repaired == {}
    assert Dataset.open(report.output).digest == Dataset.open(file).digest


def test_damage_beyond_repair_is_logged(tmp_path: Path) -> None:
    """The last byte of a closing quotation mark was thrown away."""
    report = fix(write([chat("â€œSoâ€ he said", "ok")], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert report.repaired == report.not_repaired == {"mojibake": 1}
    logged = [json.loads(line)["action"] for line in Path(report.log).read_text().splitlines()]
    assert logged == ["repaired", "not repaired"]
    assert "“Soâ€ he said" in (tmp_path / "out.jsonl").read_text()


def test_fields_that_the_copy_has_not_are_logged(tmp_path: Path) -> None:
    row = json.loads(chat("Hi", "Hello")) | {"id": 7, "source": "web", **{f"x{i}": 1 for i in range(12)}}
    row["messages"][1]["mood"] = "glad"
    report = fix(write([json.dumps(row)], tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert (
        report.dropped == {"extra-fields": 1, "unread-column": 1}
        and report.repaired == {}
        and report.written == 1
    )
    details = [json.loads(line)["detail"] for line in Path(report.log).read_text().splitlines()]
    assert details[0] == "messages[1]: unused: mood"
    assert all(name in details[1] for name in row.keys() - {"messages"})


def test_only_messages_of_one_speaker_are_joined(tmp_path: Path) -> None:
    def said(role: str, text: str, **beside: str) -> dict[str, str]:
        return {"role": role, "content": text, **beside}

    def joined(*messages: dict[str, str]) -> list[dict[str, str]]:
        file = write([json.dumps({"messages": messages})], tmp_path / "a.jsonl")
        fix(file, tmp_path / "out.jsonl", hosts=hosts("together"))
        return json.loads((tmp_path / "out.jsonl").read_text())["messages"]

    ann, bob = said("user", "a", name="Ann"), said("user", "b", name="Bob")
    thought = said("assistant", "d", reasoning="Hm")
    apart = [ann, bob, said("assistant", "c"), thought]
    assert joined(*apart) == apart
    together = joined(ann, ann, said("assistant", "c"), said("assistant", "d"))
    assert together == [said("user", "a\n\na", name="Ann"), said("assistant", "c\n\nd")]
