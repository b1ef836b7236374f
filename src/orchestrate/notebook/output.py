"""The output of the cell that runs, drawn again in place while something is waited for."""

from __future__ import annotations

import sys
from typing import Any, Protocol


class Drawn(Protocol):
    """What a notebook shows: as HTML, and as a line where it cannot."""

    def _repr_html_(self) -> str: ...


class Output:
    """Shows one thing after the other in the same place; nothing where no notebook runs."""

    def __init__(self) -> None:
        self._display = _display()
        self._handle: Any = None
        self._last = ""

    def show(self, what: Drawn) -> None:
        if self._display is None:
            return
        html = what._repr_html_()  # pyright: ignore[reportPrivateUsage]
        if html == self._last:
            return
        self._last = html
        bundle = {"text/html": html, "text/plain": str(what)}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def _display() -> Any:
    """IPython's, where a notebook's kernel runs this: nobody else has imported it, or it has no kernel."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or not hasattr(shell, "kernel"):
        return None
    from importlib import import_module

    return import_module("IPython.display").display
