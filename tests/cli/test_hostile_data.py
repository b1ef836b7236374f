"""Every data command over hostile files: an answer or a clear error, no trace, nothing half written."""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.paths import TINY

from orchestrate import cli
from orchestrate.core.zstd import zstd

ROW = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
DEEP = b"[" * 200_000 + b"]" * 200_000
MANY = b"".join(ROW.replace(b'"a"', b'"%d"' % random.Random(i).getrandbits(300)) for i in range(2000))


def _with(weight: bytes) -> bytes:
    return ROW.replace(b'"b"', b'"b", "weight": ' + weight)


def _calling(arguments: bytes) -> bytes:
    call = b'"tool_calls": [{"id": "i", "type": "function", "function": {"name": "f", "arguments": "%s"}}]'
    return ROW.replace(b'"content": "b"', call % arguments)


FILES: dict[str, bytes] = {
    "deep.jsonl": ROW + b'{"messages": ' + DEEP + b"}\n" + ROW,
    "deep-alone.jsonl": DEEP,
    "deep-objects.jsonl": ROW + b'{"a": ' * 100_000 + b"1" + b"}" * 100_000 + b"\n",
    "deep-beside.jsonl": ROW[:-2] + b', "x": ' + b'{"a": ' * 900 + b"1" + b"}" * 901 + b"\n" + ROW,
    "deep-arguments.jsonl": ROW + _calling(b'{\\"a\\": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "deep.json": b'[{"prompt": ' + DEEP + b"}]",
    "nul.jsonl": b"\x00" * 5000,
    "nul-inside.jsonl": ROW + ROW[:30] + b"\x00\x00" + ROW[30:],
    "nul.csv": b"prompt,completion\na,b\x00\nc,d\n",
    "surrogates.jsonl": ROW + ROW.replace(b'"a"', b'"\\ud83d x"') + ROW.replace(b'"a"', b'"\xed\xa0\xbd"'),
    "bom.jsonl": b"\xef\xbb\xbf" + ROW + ROW.replace(b'"a"', b'"c"'),
    "crlf.jsonl": ROW.replace(b"\n", b"\r\n") * 2,
    "cr.jsonl": ROW.replace(b"\n", b"\r") * 2,
    "truncated.jsonl.gz": gzip.compress(MANY)[:-2000],
    "truncated.jsonl.zst": zstd.compress(MANY)[:-2000],
    "stub.gz": b"\x1f\x8b",
    "empty.jsonl": b"",
    "empty.jsonl.gz": gzip.compress(b""),
    "numbers.jsonl": ROW + _with(b"9" * 400) + _with(b"9" * 5000) + _with(b"1e400") + _with(b"-1e-400"),
    "number-arguments.jsonl": _calling(b'{\\"a\\": ' + b"9" * 5000 + b"}") + _calling(b'{\\"a\\": 1e999}'),
    "twice.jsonl": ROW + ROW.replace(b'"content": "a"', b'"content": "a", "content": "z"'),
    "nan.jsonl": ROW + _with(b"NaN") + _with(b"-Infinity"),
    "noise.jsonl": random.Random(1).randbytes(100_000),
    "archive.zip": b"PK\x03\x04" + bytes(1000),
    "half.json": b'[{"prompt": "a", "completion": "b"}, {"prompt": "a", "comp',
    "bracket.jsonl": b"[",
    "quote.csv": b'prompt,completion\n"a,b\nc,d\n',
    "header.csv": b"prompt,completion\n",
    "ragged.csv": b"prompt,completion\na,b,c,d\ne\n",
    "latin.csv": b"prompt,completion\ncaf\xe9,b\n",
    "bad.parquet": b"PAR1" + bytes(100),
    "bad.arrow": b"ARROW1" + bytes(100),
    "utf16.jsonl": '{"prompt": "a", "completion": "b"}\n'.encode("utf-16") + b"x",
    "[bold]odd[nothing] name.jsonl": ROW,
}
COMMANDS = (
    ("inspect", "FILE"),
    ("inspect", "FILE", "--model", str(TINY)),
    ("check", "FILE", "--near", "--fix", "-o", "OUT"),
    ("convert", "FILE", "--to", "openai", "-o", "OUT"),
    *(
        ("convert", "FILE", "--to", to, "--allow-loss", "-o", "OUT")
        for to in ("local", "sharegpt", "alpaca", "trl", "parquet")
    ),
    ("split", "FILE", "-o", "OUT"),
    ("dedupe", "FILE", "--near", "-o", "OUT"),
    ("preview", "FILE", "--model", str(TINY), "--rows", "3"),
    ("review", "FILE", "--export", "OUT"),
    ("generate", "FILE", "--model", "m", "--base-url", "http://[::1]:9", "--max-requests", "1", "-o", "OUT"),
)  # fmt: skip

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process: starting one for each of hundreds would take minutes."""
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def go(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["orchestrate", "data", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        shown = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, shown.err if code not in (0, 1) else shown.err + shown.out

    return go


def _try(run: Run, file: str, folder: Path) -> None:
    for i, words in enumerate(COMMANDS):
        output = folder / f"out-{i}"
        code, told = run(*(str(output) if w == "OUT" else file if w == "FILE" else w for w in words))
        said = f"{' '.join(words)}: {code} {told}"
        assert code in (0, 1, 2, 4, 6) and "Traceback" not in told and "bug:" not in told, said
        assert code == 0 or "error" in told or "no answer" in told, said
        assert max(map(len, told.split()), default=0) < 1000, said  # numbers and texts are shown cut
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], said


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_each_command_answers_in_words(name: str, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "in" / name
    file.parent.mkdir()
    file.write_bytes(FILES[name])
    folder = tmp_path / "out"
    folder.mkdir()
    _try(run, str(file), folder)
    assert file.read_bytes() == FILES[name]
    assert {p.name for p in file.parent.iterdir()} == {name}


@pytest.mark.parametrize(
    "path", ["/dev/null", "/nowhere.jsonl", ".", "a\x00b", "memory://none", "zzz://x", "/proc/1/mem"]
)
def test_what_is_no_file_is_said(path: str, run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    empty = tmp_path / "empty"
    empty.mkdir()
    _try(run, str(empty) if path == "." else path, folder)


WRITERS = (
    ("check", "IN", "--fix", "-o", "OUT"),
    ("convert", "IN", "--to", "local", "-o", "OUT"),
    ("convert", "IN", "--to", "parquet", "-o", "OUT"),
    ("dedupe", "IN", "-o", "OUT"),
    ("review", "IN", "--export", "OUT"),
)


@pytest.mark.parametrize("words", WRITERS, ids=" ".join)
def test_where_it_cannot_write_is_said_and_the_input_is_kept(
    words: tuple[str, ...], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(ROW)
    before = sorted(tmp_path.iterdir())
    for output, said in (
        ("rows.jsonl", "never overwritten"),
        ("", "is a folder"),
        ("gone/x", "does not exist"),
    ):
        named = {"IN": str(file), "OUT": str(tmp_path / output)}
        code, told = run(*(named.get(word, word) for word in words))
        assert code == 2 and said in told, told
    assert file.read_bytes() == ROW and sorted(p for p in tmp_path.iterdir() if p.name != "home") == before


def test_a_split_never_writes_over_its_input(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(MANY)
    code, told = run("split", str(file), "-o", str(tmp_path))
    assert code == 2 and "never overwritten" in told and file.read_bytes() == MANY
    assert [p for p in tmp_path.iterdir() if p.is_file()] == [file]
    code, told = run("split", str(file), "-o", str(file))
    assert code == 2 and "is not a folder" in told
