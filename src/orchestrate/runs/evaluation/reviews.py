"""Human reviews: create them from an evaluation's answers, serve them, import and summarize ratings, and
export them as training rows."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from orchestrate import evaluation as rubric
from orchestrate.core.files import private_folder
from orchestrate.data.files import require_writable
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.evaluation import review as tasks
from orchestrate.evaluation.contenders import called
from orchestrate.evaluation.judges import calibration
from orchestrate.evaluation.review import ReviewSource, results, rows, source_of
from orchestrate.evaluation.review import rows as sheets
from orchestrate.evaluation.review.results import LIKENESS as LIKENESS
from orchestrate.evaluation.review.results import Planned as Planned
from orchestrate.evaluation.review.results import ReviewResult as ReviewResult
from orchestrate.evaluation.review.rows import FromReview as FromReview
from orchestrate.evaluation.review.rows import Imported as Imported
from orchestrate.evaluation.review.session import ReviewAction, rater_named, valid_ratings
from orchestrate.evaluation.review.session import ReviewSession as ReviewSession
from orchestrate.evaluation.review.written_rows import WritingSession
from orchestrate.runs.evaluation import writing_reviews
from orchestrate.store.reviews import PREFIX
from orchestrate.types import Rating, Record, Review, Rubric

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.routing import Route

    from orchestrate.evaluation.review.server import ReviewPage
    from orchestrate.workspace import Workspace


@dataclass(frozen=True, kw_only=True)
class ReviewOrder:
    """Options for a review.

    `evaluation` is the id of the evaluation whose answers are rated. It may be an evaluation without runs. By
    default, the review uses the latest evaluation that contains all of the runs. If there is none, it
    combines the latest evaluation of each run, and uses only the items that all runs answered. `items` is the
    number of items to sample. `seed` determines the sampled items, their order, and the side on which each
    answer is shown. The default seed is random, so raters cannot predict the sides. `new` starts a new review
    even if an identical one exists.
    """

    single: bool = False
    rubric: Path | None = None
    evaluation: str | None = None
    contenders: Sequence[str] = ()
    against: str | None = None
    items: int | None = None
    seed: int | None = None
    new: bool = False


class Exported(Record, frozen=True, kw_only=True):
    """The result of `review --export`."""

    review: str
    output: str
    rows: int


def opened(ft: Workspace, names: Sequence[str], order: ReviewOrder | None = None) -> ReviewSession:
    """Open a review by its id, or the runs' latest review with the same kind, contenders and rubric. If no
    such review exists, create one. Raises `UsageError` if there is nothing to rate, and `DataError` if the
    review's answers were deleted."""
    order = order or ReviewOrder()
    return (None if order.new else existing(ft, names, order)) or _made(ft, names, order)


def existing(ft: Workspace, names: Sequence[str], order: ReviewOrder | None = None) -> ReviewSession | None:
    """Return the existing review that `opened` would return, or `None`."""
    if len(names) == 1 and names[0].startswith(PREFIX):
        return _session(ft, ft.store.reviews.get(names[0]))
    order = order or ReviewOrder()
    source, contenders, asked_by, kind = _wanted(ft, names, order)
    for known in ft.store.reviews.matching(evaluation=source.id):
        if (known.kind, set(known.contenders), known.rubric) == (kind, set(contenders), asked_by):
            session = _session(ft, known)
            if _shows(session, order, source):
                return session
    return None


def _shows(session: ReviewSession, order: ReviewOrder, source: ReviewSource) -> bool:
    """Return whether a review has the requested items, pairs and seed, as far as they were requested."""
    review = session.review
    if order.seed not in (None, review.seed):
        return False
    if order.items is not None and review.items != min(order.items, len(source.answered)):
        return False
    if order.against is None:
        return True
    against = _contender(order.against, review.contenders)
    return all(against in task.contenders for task in session.tasks)


def _wanted(
    ft: Workspace, names: Sequence[str], order: ReviewOrder
) -> tuple[ReviewSource, list[str], Rubric, Literal["pairs", "single"]]:
    if not names and order.evaluation is None:
        raise UsageError(
            "choose the runs or the evaluation to rate",
            fix="orchestrate review RUN, or: orchestrate review --evaluation ID",
        )
    run_ids = list(dict.fromkeys(ft.record(name).id for name in names))
    there = {e.id: e for e in ft.store.history.evaluations(*run_ids)}
    source = source_of(sorted(there.values(), key=lambda e: e.created_at), run_ids, order.evaluation)
    kind = "single" if order.single else "pairs"
    return source, _contenders(source, order), rubric.read(order.rubric), kind


def _made(ft: Workspace, names: Sequence[str], order: ReviewOrder) -> ReviewSession:
    source, contenders, asked_by, kind = _wanted(ft, names, order)
    review_id = ft.store.reviews.new_id()
    seed = secrets.randbelow(2**31) if order.seed is None else order.seed
    made = tasks.tasks_of(
        source.answered,
        contenders,
        kind=kind,
        review=review_id,
        against=None if order.against is None else _contender(order.against, contenders),
        items=order.items,
        seed=seed,
    )
    folder = private_folder(ft.settings.home / "reviews" / review_id)
    tasks.write(made.tasks, _shown(folder))
    review = Review(
        id=review_id,
        created_at=ft.store.clock.now(),
        kind=kind,
        contenders=tuple(contenders),
        run_ids=tuple(dict.fromkeys(id for e in source.evaluations for id in e.run_ids)),
        rubric=asked_by,
        evaluation=source.id,
        dataset=source.dataset,
        items_digest=source.items_digest,
        items=len({task.item.id for task in made.tasks} | {item for _, _, item in made.same}),
        tasks=len(made.tasks),
        same=made.same,
        seed=seed,
        folder=str(folder),
    )
    ft.store.reviews.add(review)
    return _session(ft, review)


def serving(
    session: ReviewSession | WritingSession,
    *,
    raters: Sequence[str] = (),
    host: str | None = None,
    port: int = 0,
    names: Sequence[str] = (),
) -> AbstractContextManager[ReviewPage]:
    """Serve a review, by default on this machine only. See `orchestrate.evaluation.review.server.serving`."""
    from orchestrate.evaluation.review import server
    from orchestrate.http.web import LOOPBACK

    return server.serving(session, raters=raters, host=host or LOOPBACK, port=port, names=names)


def said(ft: Workspace, session: ReviewSession) -> list[str]:
    """Summarize the ratings in one sentence per pair of contenders."""
    return results.describe(result(ft, session))


def review_routes(
    path: str, session_of: Callable[[Request], ReviewSession], back: Callable[[Request], str] | None = None
) -> list[Route]:
    """Build the routes that serve the review page on Orchestrate's own server. `session_of` returns the
    review session for a request. The page asks for the rater's name."""
    from orchestrate.evaluation.review import server

    return server.review_routes(path, session_of, lambda _: server.ANYONE, back)


def of_run(ft: Workspace, run_id: str) -> list[ReviewSession]:
    """Return the reviews of a run's answers, newest first. Skips reviews whose answers were deleted."""
    found: list[ReviewSession] = []
    for review in ft.store.reviews.matching(run_ids=[run_id]):
        with suppress(OrchestrateError):
            found.append(_session(ft, review))
    return found


def result(ft: Workspace, session: ReviewSession) -> ReviewResult:
    return results.result(session.review, session.tasks, ft.store.reviews.ratings(session.review.id))


def record(ft: Workspace, session: ReviewSession, ratings: Sequence[Rating]) -> int:
    """Import ratings and return how many were added. If any rating is invalid, none are imported. A rating's
    `left` and `right` name the contenders whose answers the rater saw on each side. Raises `UsageError` for a
    rating that does not belong to this review."""
    known = {task.id: task for task in session.tasks}
    checked: list[Rating] = []
    for one in ratings:
        task, names = known.get(one.task), [name for name in (one.left, one.right) if name]
        if task is None or one.review != session.review.id:
            raise UsageError(f"task {one.task} of {one.review} does not belong to {session.review.id}")
        if sorted(names) != sorted(task.contenders):
            there, given = " and ".join(task.contenders), " and ".join(names) or "nothing"
            raise UsageError(f"task {one.task} shows {there}, not {given}")
        said = ReviewAction(
            action="rate",
            task=one.task,
            choice=one.choice,
            scores=one.scores,
            note=one.note,
            seconds=one.seconds,
        )
        session.rating(said, one.rater, names)
        checked.append(replace(one, rater=rater_named(one.rater)))
    ft.store.reviews.rate(*checked)
    return len(checked)


def planned(preference: float, likeness: float | None = None) -> tuple[Planned, ...]:
    """Calculate how many raters and items are needed to detect a preference, such as 0.6 if raters prefer one
    model in 60% of comparisons. `likeness` is the measured correlation between raters (default: a typical
    value)."""
    if not 0 < preference < 1 or abs(preference - 0.5) < 0.005:
        raise UsageError("a preference must be between 0 and 1 and not exactly 0.5", fix="--detect 0.6")
    return results.planned(preference, likeness=results.LIKENESS if likeness is None else likeness)


def export(ft: Workspace, session: ReviewSession, output: Path, rater: str | None) -> Exported:
    """Export a review as a spreadsheet to fill in (`.csv`), or its ratings for calibrating a judge
    (`.jsonl`)."""
    require_writable(output)
    if output.suffix.lower() == ".csv":
        if rater is None:
            raise UsageError(
                "a spreadsheet needs a rater's name, because each rater sees the items in a different order",
                fix="--rater NAME",
            )
        count = sheets.export(session, rater, output)
    elif output.suffix.lower() == ".jsonl":
        count = calibration.write(rated_answers(ft, session.review.id), output)
    else:
        raise UsageError(f"{output}: use .csv for a spreadsheet to fill in, or .jsonl for the ratings")
    return Exported(review=session.review.id, output=str(output), rows=count)


def rated_answers(ft: Workspace, name: str) -> list[calibration.RatedAnswer]:
    """Return the rated answers of a review. Raises `UsageError` if there are none yet."""
    session = opened(ft, [name])
    held = valid_ratings(ft.store.reviews.ratings(session.review.id))
    if not held:
        raise UsageError(f"{session.review.id} has no ratings yet")
    return calibration.of_review(session.review, session.tasks, held)


def take(ft: Workspace, session: ReviewSession, sheet: Path, rater: str | None) -> Imported:
    """Import the ratings from a spreadsheet. If any row is invalid, raises `DataError` with the row's
    position and imports nothing."""
    if rater is None:
        raise UsageError("the spreadsheet does not say who gave the ratings", fix="--rater NAME")
    return sheets.take(session, sheet, rater, ft.store.reviews.rate)


def from_review(
    ft: Workspace, name: str, output: Path, *, format: Literal["dpo", "kto", "sft"] | None, agreement: float
) -> FromReview:
    """Write a review's ratings as training rows, by default as preference pairs. For a review in which rows
    were written instead of rated, export the written rows."""
    if (review := writing_reviews.known(ft, name)) is not None:
        if format not in (None, "sft"):
            raise UsageError(f"{review.id} contains written rows: use --as sft, not {format}")
        return writing_reviews.export(ft, review, output)
    if format == "sft":
        raise UsageError(f"{name} contains ratings, not written rows: use --as dpo or kto", fix="--as dpo")
    require_writable(output)
    session = opened(ft, [name])
    ratings = ft.store.reviews.ratings(session.review.id)
    return rows.from_review(
        session.review, session.tasks, ratings, output, format=format or "dpo", agreement=agreement
    )


def _session(ft: Workspace, review: Review) -> ReviewSession:
    if review.kind == "writing":
        raise UsageError(
            f"{review.id} is for writing rows by hand, so it has no model answers to rate.",
            fix=f"orchestrate review {review.id}",
        )
    return ReviewSession(review, tasks.read(_shown(Path(review.folder))), ft.store.reviews)


def _shown(folder: Path) -> Path:
    return folder / "tasks.jsonl"


def _contenders(source: ReviewSource, order: ReviewOrder) -> list[str]:
    names = source.contenders
    wanted = [_contender(name, names) for name in order.contenders] or list(names)
    if order.against is not None and (against := _contender(order.against, names)) not in wanted:
        wanted.append(against)
    return wanted


def _contender(written: str, names: Sequence[str]) -> str:
    """Return the one contender that `called` finds. Raises `UsageError` if none or several match."""
    found = called(written, names)
    if len(found) != 1:
        what = f"several contenders are called {written!r}" if found else f"unknown contender {written!r}"
        raise UsageError(f"{what}. Contenders: {', '.join(names)}")
    return found[0]
