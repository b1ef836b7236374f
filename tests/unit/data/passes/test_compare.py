"""Which rows occur before: the same whether few rows are compared or many."""

from __future__ import annotations

import random
from array import array

from orchestrate.data.passes.compare import FEW, repeats


def test_few_rows_give_what_many_give() -> None:
    some = random.Random(3)
    hashes = array("Q", (some.randrange(2 * FEW) for _ in range(FEW + 1)))  # compared by numpy
    again, first = ([int(i) for i in found] for found in repeats(hashes))
    last = again.index(FEW) if FEW in again else len(again)
    assert (again[:last], first[:last]) == repeats(hashes[:FEW])
    assert len(again) > 1000 and again == sorted(again)
    assert all(hashes[i] == hashes[j] and j < i for i, j in zip(again, first, strict=True))
