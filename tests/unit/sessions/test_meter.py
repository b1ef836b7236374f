"""What a session counts while it cannot write."""

from __future__ import annotations

import errno
from decimal import Decimal
from pathlib import Path

import pytest

from orchestrate.core.files import Journal
from orchestrate.providers.sessions import SessionPrice, TokenUse
from orchestrate.sessions.record import Meter


def test_a_disk_that_is_full_when_an_answer_arrives_leaves_its_maximum_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meter() -> Meter:
        made = Meter("tinker", SessionPrice(train_usd_per_mtok=Decimal(1)), Decimal(1), Decimal)
        made.keep_in(tmp_path)
        return made

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    first = meter()
    number = first.reserve(TokenUse(train=1000))
    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", full)
        first.settle(number, TokenUse(train=900))  # an error here would leave the loop waiting forever
        with pytest.raises(OSError, match="No space"):
            first.reserve(TokenUse(train=1))
    assert first.usd == Decimal("0.0009")
    assert meter().usd == Decimal("0.001")
