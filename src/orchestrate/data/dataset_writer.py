"""Write rows to a file, in a backend's dialect or another tool's format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path

from msgspec.structs import replace

from orchestrate.data import rows as numbers
from orchestrate.data import rules
from orchestrate.data.dataset_reader import worker_count
from orchestrate.data.dialects import target as for_backend
from orchestrate.data.facts import Facts, require_same
from orchestrate.data.files import whole, writing
from orchestrate.data.files.sources import source
from orchestrate.data.passes import ordered
from orchestrate.data.passes.scan import ScanTask, ranges, read_rows
from orchestrate.data.rows import ChatExample, CompletionExample, Example, PreferenceExample
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import RowTarget
from orchestrate.data.shapes.known import message
from orchestrate.data.shapes.preferences import of_pair
from orchestrate.data.shapes.row_reader import canonical
from orchestrate.data.tools import FORMATS, UNHELD, WEIGHTS_BESIDE_OTHERS, encoder, tool, write_parquet
from orchestrate.errors import DataError
from orchestrate.profile import built_in
from orchestrate.types import Problem, Severity


def refuse(data: Facts, target: RowTarget, errors: list[Problem]) -> None:
    """Raise `DataError` if there are problems."""
    if errors:
        shown = "; ".join(p.message for p in errors[:3])
        raise DataError(
            f"{target.name} cannot represent {data.path}: {shown}", problems=errors, fix=errors[0].fix
        )


def target_for(data: Facts, target: RowTarget) -> RowTarget:
    """Return the target, adapted to the rows. For TRL, conversations in which only the last answer is trained
    on are written as prompt-completion rows. If the file also contains conversations with several trained
    answers, the target reports a loss instead, because one file can't contain both."""
    if target.name != "trl" or not _has(data, Trait.LAST_TRAINED):
        return target
    if not _has(data, Trait.SEVERAL_TRAINED):
        return (
            dataclasses.replace(target, encode=encoder("trl-completion")) if data.kind == "chat" else target
        )
    traits = {**target.rules.traits, Trait.LAST_TRAINED: WEIGHTS_BESIDE_OTHERS}
    return dataclasses.replace(target, rules=dataclasses.replace(target.rules, traits=traits))


def _has(data: Facts, trait: Trait) -> bool:
    return any(mask & trait for mask in data.masks)


def write_rows(
    data: Facts,
    target: RowTarget,
    path: Path,
    *,
    allow_loss: bool = False,
    as_chat: bool = False,
    workers: int | None = None,
) -> tuple[int, list[Problem]]:
    """Write the rows to `path` in one pass over the file. `path` is created after all rows have been written,
    and only if the source file still contains the rows of `data`. Returns the number of rows written and a
    list of what was lost.

    `as_chat` turns prompt/completion rows into conversations if the target accepts only conversations. Raises
    the same errors as `convert`, and `DataError` if the rows have changed.
    """
    target = target_for(data, target)
    chat = as_chat and data.kind == "completion" and target.rules.kinds["completion"] is not None
    losses = [] if chat else [_elsewhere(p, data) for p in rules.losses(data, target)]
    refused = target.rules.refused(data.kind, allow_loss=allow_loss)
    errors = [p for p in losses if p.severity is Severity.ERROR]
    if not allow_loss or any(p.code == "kind-refused" for p in errors):
        refuse(data, target, errors)
    lines = source(data.path)
    tasks = [
        _Piece(ScanTask(lines.lines, start, end, data.format, data.columns), target, refused, chat)
        for start, end in ranges(lines.lines, lines.line_bytes)
    ]
    written = unheld = 0
    seen = sha256()
    if target.name == "parquet":
        nested = Trait.TOOLS | Trait.IMAGES | Trait.TEXT_PARTS | Trait.LOSS_SPANS
        plain = data.kind in ("chat", "text") and not any(mask & nested for mask in data.masks)
        with whole(path) as partial:
            rows = chain.from_iterable(_kept(piece, seen.update) for piece in tasks)
            written = write_parquet(rows, partial, data.kind, plain=plain)
            require_same(seen.hexdigest(), data)
            _require_some(written, data, target)
    else:
        with writing(path) as file:
            for text, count, without, digests in ordered(
                _encoded, tasks, worker_count(workers, lines.line_bytes)
            ):
                file.write(text)
                written += count
                unheld += without
                seen.update(digests)
            require_same(seen.hexdigest(), data)
            if unheld:
                losses = [*losses, _unheld(data, target, unheld)]
                refuse(data, target, [] if allow_loss else losses[-1:])
            _require_some(written, data, target)
    return written, losses


def _require_some(written: int, data: Facts, target: RowTarget) -> None:
    if not written:
        raise DataError(
            f"no row of {data.path} can be converted to {target.name}",
            problems=data.problems,
            fix=f"orchestrate data check {data.path}",
        )


def _elsewhere(loss: Problem, data: Facts) -> Problem:
    """Suggest targets that accept the rejected kind of rows."""
    if loss.code != "kind-refused":
        return loss
    known = [for_backend(kind, profile) for kind, profile in built_in().items()]
    fit = [one.name for one in (*known, *map(tool, FORMATS)) if one.rules.kinds[data.kind] is None]
    return replace(loss, fix=f"convert {data.kind} rows to one of: {', '.join(fit)}")


def _unheld(data: Facts, target: RowTarget, count: int) -> Problem:
    return Problem(
        code="not-held",
        severity=Severity.ERROR,
        message=f"{UNHELD[target.name][0]} cannot be represented ({count:,} "
        f"{'row' if count == 1 else 'rows'})",
        fix="to write the rows anyway: --allow-loss",
        source=data.path,
        providers=(target.name,),
    )


@dataclass(frozen=True)
class _Piece:
    """A range of rows to write for `target`, without rows that have a trait in `refused`."""

    task: ScanTask
    target: RowTarget
    refused: int
    as_chat: bool


def _encoded(piece: _Piece) -> tuple[bytes, int, int, bytes]:
    """Encode a range. Returns the lines, the number of lines, the number of rows with content that the
    target can't represent, and the sha256 of each row read. Pure function."""
    encode, dump = piece.target.encode, numbers.encode
    _, is_unheld = UNHELD.get(piece.target.name, ("", None))
    lines: list[bytes] = []
    unheld, digests = 0, bytearray()
    for example in _kept(piece, digests.extend):
        lines.append(dump(encode(example)) + b"\n")
        unheld += is_unheld is not None and is_unheld(example)
    return b"".join(lines), len(lines), unheld, bytes(digests)


def _kept(piece: _Piece, seen: Callable[[bytes], object]) -> Iterator[Example]:
    """Yield the examples to write. `seen` receives the sha256 of each valid row, including rows that are
    not written."""
    for _, row in read_rows(piece.task):
        example = row.example
        if example is None:
            continue
        seen(sha256(canonical(example)).digest())
        if row.traits & piece.refused:
            continue
        if piece.as_chat and isinstance(example, CompletionExample):
            example = ChatExample(
                messages=[message("user", example.prompt), message("assistant", example.completion)]
            )
        if piece.target.name == "unpaired" and isinstance(example, PreferenceExample):
            yield from of_pair(example)
        else:
            yield example
