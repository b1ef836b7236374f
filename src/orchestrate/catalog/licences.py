"""What the licence of a base model asks of those who pass a tuned model on or serve it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from orchestrate.catalog.models import lookup
from orchestrate.types import Record, decoding


class Licence(Record, frozen=True, kw_only=True):
    """In short, for a question; the licence itself decides."""

    id: str
    """As the hub names it."""
    title: str
    url: str | None = None
    asks: tuple[str, ...] = ()
    """Each has to be agreed to; none means that nothing is asked."""
    notice: str | None = None
    """What has to stand beside the weights."""
    name_begins: str | None = None


@cache
def _known() -> dict[str, dict[str, Any]]:
    import yaml

    text = files("orchestrate.catalog").joinpath("licences.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def licence(id: str) -> Licence:
    """By the hub's name for it; one that is not listed asks for nothing."""
    entry = dict(_known().get(id.lower(), {"title": id}))
    if entry.pop("unread", False):
        entry["asks"] = ["nobody has read it for this catalog: read it before you go on"]
    return decoding.convert({"id": id, **entry}, Licence)


def licence_of(model: str) -> Licence | None:
    """Of a base model by any of its names; `None` where the catalog does not know it."""
    found = lookup(model)
    return licence(found.licence) if found is not None and found.licence is not None else None
