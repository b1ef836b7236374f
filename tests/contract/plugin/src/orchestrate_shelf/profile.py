"""What Orchestrate knows of the shelf before it is asked anything. Nothing heavy is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.data.dialects import Dialect
from orchestrate.data.rows import KINDS
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import NO_NAMES, HostRules
from orchestrate.profile import Profile
from orchestrate.types import JobStatus

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.costing.size import JobSize, Lines


def bills(size: JobSize, rate: Rate) -> Lines:
    """By the token of the training file, each epoch."""
    from orchestrate.costing.lines import MTOK, line
    from orchestrate.costing.size import Lines

    tokens = size.train_tokens * size.epochs / MTOK
    training = line("training", tokens, rate, band=size.band)  # as sure as the tokens are counted
    return Lines(lines=(training,), notes=("a shelf bills what it takes",), open_end=size.uncounted)


RULES = HostRules(
    kinds={kind: None if kind == "chat" else "a shelf takes conversations only" for kind in KINDS.values()},
    traits={Trait.NAMES: NO_NAMES},
    least_rows=2,
)
PROFILE = Profile(
    kind="shelf",
    title="Shelf",
    provider="orchestrate_shelf.provider:ShelfProvider",
    url="https://shelf.example.com/v1",
    options=frozenset({"label"}),
    statuses={"shelved": JobStatus.SUCCEEDED, "dropped": JobStatus.CANCELLED},
    rules=RULES,
    dialect=Dialect(developer="system", names=False),
    bills=bills,
    default_epochs=1,
)
