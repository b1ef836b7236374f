"""The option `--rate`, shared by the commands that show prices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate import days

if TYPE_CHECKING:
    from orchestrate.preparing.prepared import Prepared
    from orchestrate.preparing.quoting import Rate, RateBook
    from orchestrate.service import Orchestrator

RateOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--rate", metavar="PROVIDER:METHOD[@MODEL]=USD", help="Your own price; it takes precedence."
    ),
]


def of_flags(flags: list[str] | None) -> list[Rate]:
    """Raises `UsageError`."""
    from orchestrate.preparing.quoting import parse_flag

    return [parse_flag(flag, days.today()) for flag in flags or ()]


def require_used(
    ft: Orchestrator, flags: list[str] | None, *prepared: Prepared, serving: bool = False
) -> None:
    """Raise `UsageError` for a flag that changes none of the prices; `serving` counts those too."""
    from orchestrate.preparing import quoting

    quoting.require_used(ft, prepared, of_flags(flags), serving=serving)


def with_flags(book: RateBook, flags: list[str] | None) -> RateBook:
    """`book` under the given `--rate` flags. Raises `UsageError`."""
    return book.over(of_flags(flags))
