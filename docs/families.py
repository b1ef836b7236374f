"""Writes the table of families in docs/local.md from the record of the test that compares them.

ORCHESTRATE_FAMILIES=record.json pytest tests/unit/local/model/test_families.py
python docs/families.py record.json
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "local.md"
BEGIN, END = "<!-- families -->\n", "<!-- end of families -->\n"
LIBRARIES = ("torch", "transformers", "peft")


def row(family: str, checked: dict[str, dict[str, Any]]) -> str:
    adapters = sorted({case.rpartition(", ")[0] for case in checked})
    line = all(found["line"] for case, found in checked.items() if case.endswith(", line"))
    packs = all(found["packs"] for case, found in checked.items() if case.endswith(", packing"))
    loss = max(found["loss"] for found in checked.values())
    weights = max(found["weights"] for found in checked.values())
    cells = (family, ", ".join(adapters), "yes" if line else "padded", "yes" if packs else "padded")
    return f"| {' | '.join(cells)} | {loss:.0e} | {weights:.0e} |"


def section(record: dict[str, dict[str, dict[str, Any]]]) -> str:
    used = ", ".join(f"{library} {version(library)}" for library in LIBRARIES)
    head = (
        f"{len(record)} architectures, each as a small random model, trained here and by a plain loop of\n"
        "transformers, peft and torch that goes row by row, on a CPU in 32 bits\n"
        f"({used}). The last two columns are the largest relative distances\n"
        "that were seen, of a loss and of the weights over how far they went. Made by\n"
        "`python docs/families.py` from the record of `tests/unit/local/model/test_families.py`.\n\n"
        "| family (`model_type`) | adapters | short rows packed together | packing | loss | weights |\n"
        "| --- | --- | --- | --- | ---: | ---: |\n"
    )
    return head + "".join(f"{row(family, record[family])}\n" for family in sorted(record))


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}{section(record)}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
