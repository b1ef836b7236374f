"""Cuts the API descriptions that hosts publish to what the tests use: `python cut.py FOLDER`, with
`openai.yaml` and `together.yaml` as published in FOLDER. Prose and examples go, as do paths that nothing here
asks for and the schemas that only those name; what remains is as published."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
PATHS = {
    "openai": r"/(chat/completions|files|fine_tuning|models|uploads)(/.*)?",
    "together": r"/v1/(files|fine-tunes|finetune|endpoints|models)(/.*)?",
}
SOURCES = {
    "openai": "openai/openai-openapi on GitHub, openapi.yaml of 2026-08-21 (f85dbe2)",
    "together": "togethercomputer/openapi on GitHub, openapi.yaml of 2026-04-28 (090263a)",
}
PROSE = ("description", "summary", "example", "examples", "tags", "externalDocs")
NAMED = ("properties", "schemas", "responses", "patternProperties", "$defs")
"""What stands in these is named by the host: a field may be called `description`."""


def main(folder: Path) -> None:
    for name, pattern in PATHS.items():
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        whole = yaml.load((folder / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)
        text = yaml.safe_dump(cut(whole, pattern), sort_keys=False, width=110)
        head = f"# {SOURCES[name]}, under LICENSE-MIT.\n# Cut by cut.py to what the tests use.\n"
        (HERE / f"{name}.yaml").write_text(head + text, encoding="utf-8")


def cut(whole: dict[str, Any], pattern: str) -> dict[str, Any]:
    paths = {
        path: without_prose(entry) for path, entry in whole["paths"].items() if re.fullmatch(pattern, path)
    }
    parts = {kind: without_prose(found, named=True) for kind, found in whole["components"].items()}
    wanted = set[tuple[str, str]]()
    left = [*references(paths), ("schemas", "ErrorResponse")]
    while left:
        kind, name = left.pop()
        if (kind, name) not in wanted and name in parts.get(kind, {}):
            wanted.add((kind, name))
            left += references(parts[kind][name])
    kept = {
        kind: {n: part for n, part in found.items() if kind == "securitySchemes" or (kind, n) in wanted}
        for kind, found in parts.items()
    }
    return {**whole, "paths": paths, "components": {kind: found for kind, found in kept.items() if found}}


def without_prose(part: Any, *, named: bool = False) -> Any:
    if isinstance(part, list):
        return [without_prose(item) for item in part]
    if not isinstance(part, dict):
        return part
    found: dict[str, Any] = {}
    for key, value in part.items():
        if named or not (key in PROSE or str(key).startswith("x-")):
            found[key] = without_prose(value, named=not named and key in NAMED)
    if "content" in found and "description" in part and not named:
        found = {"description": "", **found}  # a response must have one
    return found


def references(part: Any) -> Iterator[tuple[str, str]]:
    if isinstance(part, dict):
        if isinstance(target := part.get("$ref"), str):
            *_, kind, name = target.split("/")
            yield kind, name
        for name in (part.get("discriminator") or {}).get("mapping", {}).values():
            yield "schemas", str(name).rpartition("/")[2]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from references(item)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
