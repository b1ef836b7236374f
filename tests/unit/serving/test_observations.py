"""Which token of the trainer's answer a served number is compared with, however a server cuts its text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from orchestrate.serving.proof.observations import ObservedAnswer, along
from orchestrate.types import Said

ANSWER = [b"Is", b" ", b"\xe6", b"\x9d\xb1", b"\xe4\xba", b"\xac", b" \xf0\x9f", b"\x8e", b"\x89!", b"", b""]
"""Two letters of three bytes and one of four, each in several tokens; then tokens that are not shown."""
KNOWN = Said(
    text="Is 東京 🎉!",
    ids=tuple(range(len(ANSWER))),
    logprobs=tuple(-0.1 * n for n in range(len(ANSWER))),
    pieces=tuple(ANSWER),
    ended=True,
)


def joined(*counts: int) -> ObservedAnswer:
    """As a server tells it that joins so many tokens in each entry, with the number of the last."""
    pieces: list[bytes] = []
    numbers: list[float] = []
    at = 0
    for count in counts:
        at += count
        pieces.append(b"".join(ANSWER[at - count : at]))
        numbers.append(KNOWN.logprobs[at - 1])
    return ObservedAnswer(text=KNOWN.text, pieces=pieces, logprobs=numbers)


@pytest.mark.parametrize(
    "counts",
    [(1,) * 11, (1, 1, 2, 2, 3, 1, 1), (2, 4, 3), (9,), (1, 1, 4)],
    ids=lambda c: "-".join(map(str, c)),
)
def test_a_number_is_compared_with_the_last_of_the_tokens_that_its_bytes_are_made_of(
    counts: Sequence[int],
) -> None:
    found = along(joined(*counts), KNOWN)
    told = [(n, value) for n, value in enumerate(found) if value is not None]
    ends = [sum(counts[: n + 1]) - 1 for n in range(len(counts))]
    shown = [end for end in ends if ANSWER[end]]
    assert told == [(end, KNOWN.logprobs[end]) for end in shown]


def test_an_answer_counts_up_to_where_it_leaves_the_known_one() -> None:
    other = joined(1, 1, 2, 2)
    pieces = [*list(other.pieces or ())[:3], b"\xe5\xba\xac"]
    left = ObservedAnswer(text="", pieces=pieces, logprobs=other.logprobs)
    assert along(left, KNOWN) == [KNOWN.logprobs[0], KNOWN.logprobs[1], None, KNOWN.logprobs[3]]
    cut_elsewhere = ObservedAnswer(
        text="", pieces=[b"Is", b" \xe6\x9d", b"\xb1"], logprobs=[-0.0, -9.0, -9.0]
    )
    assert along(cut_elsewhere, KNOWN) == [KNOWN.logprobs[0]], (
        "the same text by other tokens is another answer"
    )


def test_an_answer_kept_without_its_pieces_counts_as_long_as_an_entry_is_a_token() -> None:
    """Sheets of before hold none."""
    old = Said(text=KNOWN.text, ids=KNOWN.ids, logprobs=KNOWN.logprobs, ended=True)
    assert along(joined(1, 1, 2, 2, 3), old) == list(KNOWN.logprobs[:2])


def test_pieces_survive_being_stored() -> None:
    assert Said.from_json(KNOWN.to_json()) == KNOWN and Said.from_dict(KNOWN.to_dict()) == KNOWN
