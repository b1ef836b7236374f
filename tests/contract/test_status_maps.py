"""Each word that an SDK knows for a job's status is mapped, and no other ends a job."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from orchestrate.profile import built_in, profile
from orchestrate.types import JobStatus


def words(annotation: Any) -> set[str]:
    """The words of the Literal inside an annotation."""
    if get_origin(annotation) is Literal:
        return set(get_args(annotation))
    return set().union(*(words(part) for part in get_args(annotation)))


def sdk_words(name: str) -> Iterator[set[str]]:
    if name == "openai":
        from openai.types.fine_tuning import FineTuningJob

        yield words(FineTuningJob.model_fields["status"].annotation)
    elif name == "together":
        from together.types import FinetuneResponse

        yield words(FinetuneResponse.model_fields["status"].annotation)
    elif name == "fireworks":
        from fireworks.types import DpoJob, ReinforcementFineTuningJob, SupervisedFineTuningJob

        for kind in (SupervisedFineTuningJob, DpoJob, ReinforcementFineTuningJob):
            yield words(kind.model_fields["state"].annotation)


ENDS = {
    "openai": {"succeeded", "failed", "cancelled"},
    "together": {"completed", "error", "cancelled"},
    "fireworks": {
        "JOB_STATE_COMPLETED",
        "JOB_STATE_EARLY_STOPPED",
        "JOB_STATE_FAILED",
        "JOB_STATE_CANCELLED",
        "JOB_STATE_EXPIRED",
    },
}


@pytest.mark.parametrize("name", ENDS)
def test_every_word_of_the_sdk_is_mapped(name: str) -> None:
    table = profile(name).statuses
    for known in sdk_words(name):
        assert len(known) > 4
        unmapped = {w for w in known if table.get(w, JobStatus.UNKNOWN) is JobStatus.UNKNOWN}
        assert unmapped <= {"JOB_STATE_UNSPECIFIED"}
        ends = {w for w in known if table.get(w, JobStatus.UNKNOWN).terminal}
        # A job that is being deleted is over for us, whichever way the host words it.
        assert {w for w in ends if "DELETING" not in w} == ENDS[name]


@pytest.mark.parametrize("name", built_in())
@pytest.mark.parametrize("word", ["reticulating", "SUCCEEDED ", "", None])
def test_unknown_words_never_end_a_job(name: str, word: str | None) -> None:
    assert profile(name).status(word) is JobStatus.UNKNOWN
    assert not profile(name).status(word).terminal
