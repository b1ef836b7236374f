"""List the names of a model's modules by building the model without weights. Runs in a separate process.
Imports torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrate.local.model.adapters.starts import names_of
from orchestrate.local.model.weights import hollow
from orchestrate.local.weights import serve


def names(config: dict[str, Any]) -> dict[str, Any]:
    return names_of(hollow(config)).to_dict()


TASKS: dict[str, Callable[..., dict[str, Any]]] = {"names": names}


if __name__ == "__main__":
    raise SystemExit(serve(TASKS))
