"""The command `review`: blind ratings by human raters."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer

from orchestrate.commands.terminal import completion
from orchestrate.commands.terminal.command import Output, command, for_people
from orchestrate.commands.terminal.console import (
    ended_by_signal,
    err,
    note,
    orchestrator,
    out,
    print_text,
    table,
    warn,
)
from orchestrate.errors import UsageError
from orchestrate.text import count
from orchestrate.types import Score

_PAIRS_SHOWN, _CHARACTERS = 10, 100

if TYPE_CHECKING:
    from orchestrate.runs.evaluation.reviews import Exported, Imported, Planned, ReviewOrder, ReviewResult
    from orchestrate.runs.evaluation.writing_reviews import WritingResult

_TENTATIVE, _FIRM = 0.667, 0.8
"""Minimum values of Krippendorff's alpha, for tentative and for firm conclusions."""


@dataclass(frozen=True, kw_only=True)
class ReviewSelection:
    """Options for selecting the answers to rate."""

    single: Annotated[
        bool, typer.Option("--single", help="Show answers one by one instead of side by side.")
    ] = False
    rubric: Annotated[Path | None, typer.Option(help="YAML file with question, guide and criteria.")] = None
    contenders: Annotated[
        list[str] | None,
        typer.Option("--contender", metavar="NAME", help="Show only answers of this model. Default: all."),
    ] = None
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show only pairs with an answer of this model.")
    ] = None
    items: Annotated[int | None, typer.Option(min=1, help="Number of items, drawn at random.")] = None
    evaluation: Annotated[
        str | None,
        typer.Option(
            metavar="ID",
            help="Evaluation to rate, by id. Default: the newest evaluation that includes all the runs you "
            "name.",
        ),
    ] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Random seed for items, order and sides.")] = None
    new: Annotated[bool, typer.Option("--new", help="Start a new review instead of continuing.")] = False


@dataclass(frozen=True, kw_only=True)
class ReviewAddress:
    """Options for the raters and the address of the page."""

    raters: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Comma-separated names of raters. Each gets their own link. Default: one link for everyone.",
        ),
    ] = ""
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to serve on, such as 0.0.0.0 to allow phones. Default: this machine only."
        ),
    ] = None
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Also accept requests for this host name; repeatable.")
    ] = None
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. Default: any free one.")] = 0
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page.")] = True


@dataclass(frozen=True, kw_only=True)
class OtherActions:
    """Options for actions other than serving the page."""

    results: Annotated[bool, typer.Option("--results", help="Show the results so far.")] = False
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a blank rating sheet (.csv) or the collected ratings (.jsonl)."
        ),
    ] = None
    take: Annotated[
        Path | None, typer.Option("--import", metavar="FILE.csv", help="Import a filled sheet.")
    ] = None
    rater: Annotated[str | None, typer.Option(metavar="NAME", help="Rater who fills in the sheet.")] = None
    plan: Annotated[bool, typer.Option("--plan", help="Show how many raters and items you need.")] = False
    detect: Annotated[float, typer.Option(help="With --plan: preference rate to detect.")] = 0.6


@dataclass(frozen=True, kw_only=True)
class WriteOptions:
    """Options for writing rows instead of rating answers."""

    write: Annotated[
        str | None,
        typer.Option(
            "--write", metavar="FILE", help="Let raters write and correct the training rows of this file."
        ),
    ] = None
    overlap: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="With --write: fraction of rows that two people write independently."
        ),
    ] = 0.2
    settler: Annotated[
        str,
        typer.Option(metavar="NAME", help="With --write: person who decides when two writers disagree."),
    ] = "settler"


class AnswersReviewing(TypedDict):
    review: str
    links: dict[str, str]
    tasks: int
    done: dict[str, int]


@command
def review(
    context: typer.Context,
    run: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...",
            help="Evaluated runs, or a review's id.",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    what: ReviewSelection,
    place: ReviewAddress,
    rows: WriteOptions,
    instead: OtherActions,
) -> Iterator[
    Output[AnswersReviewing]
    | Output[ReviewResult]
    | Output[WritingResult]
    | Output[Exported]
    | Output[Imported]
    | Output[tuple[Planned, ...]]
]:
    """Collect blind ratings in the browser or in a spreadsheet.

    The answers come from an evaluation (`orchestrate eval`). The page works with a keyboard and on phones.
    Each rater sees the answers in a different order and can continue later. With --write, people write and
    correct training rows instead. Press Ctrl-C to stop the server."""
    from orchestrate.runs.evaluation import reviews, writing_reviews

    chosen = [instead.results, bool(instead.export), bool(instead.take), instead.plan]
    if sum(chosen) > 1:
        raise UsageError("use only one of --results, --export, --import and --plan")
    if instead.plan and not run and what.evaluation is None and rows.write is None:
        yield Output(reviews.planned(instead.detect), partial(_show_plan, share=instead.detect))
        return
    run = run or []
    with orchestrator(context) as ft:
        if rows.write is not None or (len(run) == 1 and writing_reviews.known(ft, run[0])):
            yield from _write(ft, run, what, place, rows, instead)
            return
        order = _order(what)
        if instead.plan or instead.results:
            yield _results_so_far(ft, run, order, instead)
            return
        session = reviews.opened(ft, run, order)
        if instead.export is not None:
            yield Output(reviews.export(ft, session, instead.export, instead.rater), _show_export)
        elif instead.take is not None:
            yield Output(reviews.take(ft, session, instead.take, instead.rater), _show_import)
        else:
            yield from _serve(session, place, _names(place.raters))


def _results_so_far(
    ft: Any, run: list[str], order: ReviewOrder, instead: OtherActions
) -> Output[ReviewResult] | Output[tuple[Planned, ...]]:
    from orchestrate.runs.evaluation import reviews

    known = reviews.existing(ft, run, order)
    if instead.plan:
        likeness = reviews.result(ft, known).likeness if known else None
        show = partial(_show_plan, share=instead.detect, likeness=likeness)
        return Output(reviews.planned(instead.detect, likeness), show)
    if known is None:
        subject = run[0] if run else f"--evaluation {order.evaluation}"
        raise UsageError("no review of these answers yet", fix=f"orchestrate review {subject}")
    return Output(reviews.result(ft, known), _show)


def _write(
    ft: Any,
    run: list[str],
    what: ReviewSelection,
    place: ReviewAddress,
    rows: WriteOptions,
    instead: OtherActions,
) -> Iterator[Output[AnswersReviewing] | Output[WritingResult]]:
    from orchestrate.runs.evaluation import writing_reviews

    if instead.export or instead.take or instead.plan:
        raise UsageError(
            "--export, --import and --plan only apply to ratings.",
            fix="to write the rows: orchestrate data from-review REVIEW -o FILE",
        )
    if what.single or what.contenders or what.against or what.evaluation or what.items:
        raise UsageError(
            "--write opens rows instead of answers, so it cannot be combined with --single, --contender, "
            "--against, --items or --evaluation."
        )
    names, settler = _names(place.raters), rows.settler
    if rows.write is None:
        session = writing_reviews.reopened(ft, ft.store.reviews.get(run[0]), names, settler)
    else:
        if run:
            raise UsageError("--write takes a file, not a run.")
        order = writing_reviews.WritingOrder(
            file=rows.write,
            writers=names,
            settler=settler,
            guide=what.rubric,
            overlap=rows.overlap,
            seed=what.seed,
            new=what.new,
        )
        opened = writing_reviews.opened(ft, order)
        session = opened.session
        for why, n in (opened.made.left_out if opened.made else {}).items():
            warn(f"{count(n, 'row')} left out: {why}. To correct rows: orchestrate data review FILE")
        if opened.made and opened.made.unread:
            warn(f"the written rows omit these columns: {', '.join(opened.made.unread)}")
    if instead.results:
        yield Output(writing_reviews.result(session), _show_writing)
        return
    yield from _serve(session, place, [*session.writers, session.settler])


def _show_writing(found: WritingResult) -> None:
    shown = table("writer", "written", "assigned", right=("written", "assigned"))
    for who, (done, total) in found.writers.items():
        shown.add_row(who, f"{done:,}", f"{total:,}")
    out.print(shown)
    if found.same is not None and found.likeness is not None:
        note(
            f"{count(found.doubly, 'row')} written by two people, "
            f"{_share(found.same)} of them with identical text"
        )
        low, high = found.likeness.low, found.likeness.high
        note(
            f"agreement between the two answers: ROUGE-L {found.likeness.value:.2f} ({low:.2f} to {high:.2f})"
        )
    if found.alpha is not None:
        note(f"agreement on labels: {_alpha(found.alpha)}")
    for one in found.disagreements[:_PAIRS_SHOWN]:
        state = "open" if one.settled is None else "settled"
        out.print(f"row {one.row:,}, {state}, ROUGE-L {one.likeness:.2f}")
        for who, answer in zip(one.writers, one.answers, strict=True):
            mark = "*" if answer == one.settled else " "
            out.print(f"  {mark} {who}: {shorten(answer, _CHARACTERS)}", style="dim")
    review = found.review.id
    to_settle = count(found.to_settle, "disagreement")
    note(f"{review}: {found.written:,} of {count(found.rows, 'row')} written, {to_settle} to settle")
    note(f"next: orchestrate data from-review {review} -o train.jsonl")


def _order(what: ReviewSelection) -> ReviewOrder:
    from orchestrate.runs.evaluation.reviews import ReviewOrder

    fields: dict[str, Any] = vars(what) | {"contenders": what.contenders or ()}
    return ReviewOrder(**fields)


def _names(written: str) -> list[str]:
    return [name.strip() for name in written.split(",") if name.strip()]


def _show_export(done: Exported) -> None:
    out.print(f"{done.output}: {count(done.rows, 'row')} of {done.review}", soft_wrap=True)


def _show_import(taken: Imported) -> None:
    counted = f"{count(taken.ratings, 'rating')} from {taken.rater}, {taken.unchanged:,} already known"
    out.print(f"{counted}, {taken.empty:,} empty", soft_wrap=True)


def _serve(session: Any, place: ReviewAddress, names: Sequence[str]) -> Iterator[Output[AnswersReviewing]]:
    from orchestrate.runs.evaluation import reviews

    review = session.review
    served = reviews.serving(session, raters=names, host=place.host, port=place.port, names=place.name or ())
    with served as page, ended_by_signal() as ended:
        shown = AnswersReviewing(
            review=review.id, links=dict(page.links), tasks=review.tasks, done=session.done()
        )
        yield Output(shown, _show_links)
        note(f"{review.id}: {count(review.tasks, 'task')} over {count(review.items, 'item')}, {review.kind}")
        if review.same:
            note(f"{count(len(review.same), 'pair')} of identical answers not shown; counted as ties")
        if place.host is None:
            note("for phones and other machines: --host 0.0.0.0, or a tunnel with its host name in --name")
        note("anyone with a link can rate. Ctrl-C stops the server. Ratings are saved")
        if place.browser and err.is_terminal and (browse := for_people(webbrowser.open)):
            browse(next(iter(page.links.values())))
        ended.wait()
    done = ", ".join(f"{who} {n}" for who, n in session.done().items()) or "nothing"
    note(f"rated: {done} of {review.tasks}. To see the results: orchestrate review {review.id} --results")


def _show_links(page: AnswersReviewing) -> None:
    for who, link in page["links"].items():
        print_text(f"{who}: {link}" if who else link)


def _show_plan(plans: tuple[Planned, ...], share: float, likeness: float | None = None) -> None:
    from orchestrate.runs.evaluation.reviews import LIKENESS

    shown = table(
        "raters per item",
        "items",
        "ratings in total",
        right=("raters per item", "items", "ratings in total"),
    )
    for plan in plans:
        shown.add_row(str(plan.raters), f"{plan.items:,}", f"{plan.votes:,}")
    out.print(shown)
    known = "assumed" if likeness is None else "measured in this review"
    value = LIKENESS if likeness is None else likeness
    note(f"these numbers give 80% power to detect a preference rate of {share:.0%}")
    note(f"correlation between two raters' votes on the same item: {value:.2f} ({known})")


def _show(found: ReviewResult) -> None:
    review = found.review
    if not found.ratings:
        note(f"{review.id} has no ratings yet. To collect some: orchestrate review {review.id}")
        return
    if review.kind == "pairs":
        _show_pairs(found)
    else:
        _show_scores(found)
    for name, alpha in found.agreement.items():
        note(f"agreement on {name}: {_alpha(alpha)}")
    if found.left is not None and not found.left.low <= 0.5 <= found.left.high:
        note(f"position bias: the left answer won {_share(found.left)} of the votes that picked a side")
    raters = ", ".join(f"{who} {n} of {review.tasks}" for who, n in found.raters.items())
    note(f"{review.id}, rubric {review.rubric.name}: {raters}; {count(found.notes, 'note')}")
    items = f"{count(review.items, 'item')} of {review.dataset} (items {review.items_digest[:12]})"
    note(f"{items}, {review.evaluation}")


def _show_pairs(found: ReviewResult) -> None:
    columns = ("items", "better", "worse", "ties", "both bad", "same")
    shown = table("contender", "against", "preferred", *columns, right=columns, fold=("contender", "against"))
    for pair in found.pairs:
        counts = (pair.first_better, pair.second_better, pair.ties, pair.both_bad, pair.same)
        n = pair.preference.n
        shown.add_row(pair.first, pair.second, _share(pair.preference), str(n), *map(str, counts))
    out.print(shown)
    if found.strengths:
        ranks = table("contender", "preferred over another answer", fold=("contender",))
        for name, score in found.strengths.items():
            ranks.add_row(name, _share(score))
        out.print(ranks)


def _show_scores(found: ReviewResult) -> None:
    shown = table("contender", "criterion", "score", fold=("contender",))
    for one in found.scores:
        score = one.score
        text = f"{score.value:.2f} ({score.low:.2f} to {score.high:.2f})"
        shown.add_row(one.contender, one.criterion or "all, 0 to 1", text)
    out.print(shown)
    for ahead in found.differences:
        score = ahead.score
        known = f"{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f}), {count(score.n, 'item')}"
        note(f"{ahead.first} minus {ahead.second}: {known}")


def _share(score: Score) -> str:
    return f"{score.value:.0%} ({score.low:.0%} to {score.high:.0%})"


def _alpha(alpha: Score | None) -> str:
    if alpha is None:
        return "unknown: either no task has two raters, or all ratings are equal"
    word = "firm" if alpha.value >= _FIRM else "tentative" if alpha.value >= _TENTATIVE else "weak"
    return f"alpha {alpha.value:.2f} ({alpha.low:.2f} to {alpha.high:.2f}), {word}, {count(alpha.n, 'task')}"
