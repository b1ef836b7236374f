"""Reviews in which people write and correct training rows."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from orchestrate import evaluation as rubrics
from orchestrate.core.files import private_folder, sha256, whole, write_whole
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import require_writable
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation.review import written_rows
from orchestrate.evaluation.review.rows import FromReview
from orchestrate.evaluation.review.session import rater_named
from orchestrate.evaluation.review.written_rows import Assigned, RowsToWrite, WritingSession
from orchestrate.evaluation.review.written_rows import WritingResult as WritingResult
from orchestrate.evaluation.review.written_rows import result as result
from orchestrate.store.reviews import PREFIX
from orchestrate.types import Review, Rubric, decoding

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

SETTLER = "settler"


@dataclass(frozen=True, kw_only=True)
class WritingOrder:
    """Options for a review in which people write rows. `guide` is the path of a text file (.md, .txt) or of a
    rubric that contains a guide. `overlap` is the fraction of rows that are assigned to two writers. `new`
    starts over even if a review of the same file exists."""

    file: str
    writers: Sequence[str]
    settler: str = SETTLER
    guide: Path | None = None
    overlap: float = 0.2
    seed: int | None = None
    new: bool = False


@dataclass(frozen=True)
class OpenedWriting:
    session: WritingSession
    made: RowsToWrite | None
    """Rows read from the file if the review is new, otherwise `None`."""


def opened(ft: Workspace, order: WritingOrder) -> OpenedWriting:
    """Open the newest review of this file, or create one. Raises `UsageError` if the file is not on this
    machine, and `DataError` if its rows cannot be read."""
    if not Path(order.file).is_file():
        raise UsageError(f"{order.file} is not a file on this machine.", fix="orchestrate data convert FILE")
    digest = sha256(Path(order.file))
    same = [one for one in ft.store.reviews.matching() if (one.kind, one.items_digest) == ("writing", digest)]
    if not same or order.new:
        return _made(ft, order, digest)
    return OpenedWriting(reopened(ft, same[0], order.writers, order.settler), None)


def known(ft: Workspace, name: str) -> Review | None:
    """Return the review with this id, or `None` if it isn't a review in which people write rows. Raises
    `UsageError` for an unknown id."""
    if not name.startswith(PREFIX):
        return None
    review = ft.store.reviews.get(name)
    return review if review.kind == "writing" else None


def reopened(
    ft: Workspace, review: Review, writers: Sequence[str] = (), settler: str = SETTLER
) -> WritingSession:
    """Open a stored review. If `writers` is set, unwritten rows that are assigned to anyone else are
    reassigned to these writers."""
    folder = Path(review.folder)
    session = WritingSession(
        review, written_rows.read(_rows(folder)), _assigned(folder), ft.store.reviews, settler
    )
    names = [*dict.fromkeys(map(rater_named, writers))]
    if not names or names == session.writers:
        return session
    if session.settler in names:
        raise UsageError(
            f"{session.settler} cannot both write rows and settle disagreements.", fix="--settler NAME"
        )
    session.assigned = written_rows.reassign(session.assigned, session.current(), names)
    _keep(folder, session.assigned)
    return session


def _made(ft: Workspace, order: WritingOrder, digest: str) -> OpenedWriting:
    writers = [*dict.fromkeys(map(rater_named, order.writers))]
    if not writers:
        raise UsageError("Name the people who write the rows.", fix="--raters ann,bo")
    if not 0 <= order.overlap <= 1:
        raise UsageError(f"--overlap must be between 0 and 1, got {order.overlap:g}.")
    review_id, folder = ft.store.reviews.new_id(), ft.settings.home / "reviews"
    found = written_rows.rows_of(order.file, review_id)
    seed = secrets.randbelow(2**31) if order.seed is None else order.seed
    assigned = written_rows.assign(found.rows, writers, order.overlap, seed)
    review = Review(
        id=review_id,
        created_at=ft.store.clock.now(),
        kind="writing",
        contenders=(),
        run_ids=(),
        rubric=_guide(order.guide),
        evaluation="",
        dataset=order.file,
        items_digest=digest,
        items=len(found.rows),
        tasks=sum(map(len, assigned.values())),
        seed=seed,
        folder=str(folder / review_id),
    )
    session = WritingSession(review, found.rows, assigned, ft.store.reviews, order.settler)
    private_folder(folder / review_id)
    written_rows.write(found.rows, _rows(folder / review_id))
    _keep(folder / review_id, assigned)
    ft.store.reviews.add(review)
    return OpenedWriting(session, found)


def _guide(path: Path | None) -> Rubric:
    if path is None or path.suffix.lower() not in (".md", ".txt"):
        return rubrics.read(path)
    try:
        return Rubric(name=path.stem, guide=path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"Could not read the guidelines in {path}: {error}") from error


def export(ft: Workspace, review: Review, output: Path) -> FromReview:
    """Write the finished rows to a file as chat rows. Raises `DataError` if no row is finished."""
    require_writable(output)
    rows, left_out = written_rows.written(reopened(ft, review))
    if not rows:
        why = ", ".join(f"{reason}: {n}" for reason, n in left_out.items())
        raise DataError(f"Review {review.id} has no finished rows ({why}).")
    with whole(output) as draft, draft.open("wb") as file:
        file.writelines(canonical_line(row) + b"\n" for row in rows)
    return FromReview(review=review.id, output=str(output), format="sft", rows=len(rows), left_out=left_out)


def _rows(folder: Path) -> Path:
    return folder / "tasks.jsonl"


def _assigned(folder: Path) -> Assigned:
    path = folder / "assigned.json"
    try:
        return decoding.decode(path.read_bytes(), type=Assigned)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"could not read the row assignments in {path}: {error}") from error


def _keep(folder: Path, assigned: Assigned) -> None:
    write_whole(folder / "assigned.json", msgspec.json.encode(assigned), private=True)
