"""Reports as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from orchestrate.errors import UsageError


def framed(page: str) -> str:
    """A page as a notebook shows it: in a frame of its own, so that its style keeps to itself."""
    style = "width: 100%; height: 44rem; border: 0"
    return f'<iframe style="{style}" srcdoc="{escape(page, quote=True)}"></iframe>'


def format_of(path: Path, endings: Mapping[str, str]) -> str:
    """By the file's ending. Raises `UsageError`."""
    format = endings.get(path.suffix.lower())
    if format is None:
        raise UsageError(f"{path.name} ends in none of {', '.join(endings)}: the ending decides the format")
    return format


def save(path: str | Path, endings: Mapping[str, str], render: Callable[[str], str]) -> Path:
    """Writes what `render` makes of the format that the file's ending stands for. Raises `UsageError`."""
    target = Path(path)
    target.write_text(render(format_of(target, endings)), encoding="utf-8", newline="")
    return target
