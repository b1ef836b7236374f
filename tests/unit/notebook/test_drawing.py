"""What a notebook shows and pandas gets: by IPython, read as a browser would, and of hostile records too."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pandas
import pytest
from IPython.core.formatters import DisplayFormatter
from tests.unit.reports.conftest import START, make_result, make_run
from tests.unit.ui.conftest import ESCAPES, MARKUP
from tests.unit.ui.page import Parsed

import orchestrate
from orchestrate import JobSpec, LoRA, errors, notebook
from orchestrate.reports.compare import compare
from orchestrate.types import (
    Event,
    JobError,
    JobStatus,
    Listing,
    MetricPoint,
    Outcome,
    Problem,
    Quote,
    Setting,
    Severity,
    Translation,
    Verdict,
)

RUN = make_run("together")
assert RUN.quote is not None
PROBLEM = Problem(
    code="empty", message="the answer is empty", severity=Severity.ERROR, row=3, field="messages"
)
POINTS = [MetricPoint(step=n, values={"train_loss": 2 - n / 10}) for n in range(1, 11)]
TRANSLATION = Translation(
    provider="together",
    model="Qwen/Qwen3-8B",
    settings=(
        Setting(name="epochs", asked=3, outcome=Outcome.KEPT, sent=3, wire="n_epochs"),
        Setting(name="seed", asked=7, outcome=Outcome.REFUSED, rule="the host takes none"),
    ),
    body={},
)


def html(value: object) -> str:
    """As a notebook's kernel asks for it."""
    bundle, _ = DisplayFormatter().format(value)
    assert "text/html" in bundle, type(value)
    return bundle["text/html"]


VERDICT = Verdict(contender=RUN.id, decision="ship", reasons=("it is better",))
SHOWN = {
    "spec": (JobSpec(model="qwen3-8b", train="t.jsonl", adapter=LoRA(r=16)), ("adapter.r", "16")),
    "quote": (RUN.quote, ("$0.75 expected", "training", "1.5", "$0.50", "a price page 2026-10-08")),
    "translation": (TRANSLATION, ("epochs", "kept", "seed", "refused", "the host takes none")),
    "problem": (PROBLEM, ("the answer is empty", "row 3", "messages")),
    "problems": (Listing([PROBLEM]), ("the answer is empty", "empty")),
    "run": (RUN, ("succeeded", "$0.76", "a1b2c3d4e5f6")),
    "runs": (Listing([RUN]), ("run-together", "qwen3.5-9b", "$0.76")),
    "quotes": (Listing([RUN.quote]), ("together", "$0.75")),
    "evaluation": (make_result(RUN, 0.8, verdicts=(VERDICT,)), ("ship", "it is better", "0.8")),
    "comparison": (compare([RUN, make_run("openai")]), ()),
    "nothing": (Listing[Quote](), ("none",)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_record_is_shown_as_a_table(name: str) -> None:
    value, words = SHOWN[name]
    drawn = html(value)
    text = Parsed(drawn).text
    assert [word for word in words if word not in text] == []
    assert len(drawn) < 100_000


@pytest.mark.parametrize("text", [MARKUP, ESCAPES, "\x00\ud800"])
def test_what_others_wrote_is_text(text: str) -> None:
    run = make_run(text, model=text, error=JobError(message=text), tags={text: text}, tuned_model=text)
    event = Event(id="1", at=START, level="info", message=text)
    problem = Problem(code=text, message=text, severity=Severity.ERROR, field=text, fix=text, source=text)
    drawn = [
        html(one)
        for one in (
            run,
            problem,
            Listing([run]),
            Listing([event]),
            Listing([problem]),
            Translation(
                provider=text,
                model=text,
                settings=(Setting(name=text, asked={text: text}, outcome=Outcome.MAPPED, rule=text),),
                body={},
            ),
            JobSpec(model="m", train="t", tags={"a": text.replace("\ud800", "")}),
        )
    ]
    drawn.append(notebook.progress(run, POINTS, [event]))
    for page in drawn:
        assert (
            "<script" not in page
            and "<img" not in page
            and "onerror=" not in page.replace("onerror=&quot;", "")
        )
        assert not any(sign in page for sign in "\x00\x07\x1b\u202e\ud800")


def test_nothing_has_a_colour_of_its_own() -> None:
    """What has none is readable on any ground; the curve takes the text's."""
    page = notebook.progress(RUN, POINTS, []) + html(Listing([RUN])) + html(RUN.quote)
    assert "color:" not in page.replace("background:currentColor", "") and "#" not in page
    assert "<style" not in page and 'class="' not in page  # an untrusted notebook would lose them


def test_a_run_on_its_way() -> None:
    going = make_run("local", status=JobStatus.RUNNING, step=50, finished_at=None, bill=None, sandbox=True)
    events = [Event(id=str(n), at=START, level="info", message=f"said {n}") for n in range(9)]
    page = Parsed(notebook.progress(going, POINTS, events, START + timedelta(minutes=12)))
    for word in ("SANDBOX", "running", "step 50 of 200", "loss 1.0000", "12m", "30m", "said 8"):
        assert word in page.text, word
    assert "said 4" not in page.text  # the last few only


def test_long_tables_and_texts_say_that_there_is_more() -> None:
    rows = [PROBLEM] * (notebook.MOST_ROWS + 5)
    assert "and 5 more" in html(Listing(rows))
    assert "…" in html(Listing([Problem(code="c", message="x" * 1000, severity=Severity.INFO)]))


def test_one_line_each_where_it_is_printed() -> None:
    said = [
        RUN,
        RUN.quote,
        PROBLEM,
        TRANSLATION,
        POINTS[0],
        Event(id="1", at=START, level="info", message="m"),
    ]
    for one in said:
        assert len(str(one).splitlines()) == 1 and len(str(one)) < 160, str(one)
    assert str(Listing([PROBLEM, PROBLEM])) == f"{PROBLEM}\n{PROBLEM}"
    assert str(PROBLEM) == "error: row 3, messages: the answer is empty"
    spec = JobSpec(model="qwen3-8b", train="t.jsonl", adapter=LoRA(r=16))
    assert str(spec) == repr(spec) == "JobSpec(model='qwen3-8b', train='t.jsonl', adapter=LoRA(r=16))"
    assert eval(repr(spec), {"JobSpec": JobSpec, "LoRA": LoRA}) == spec


def test_runs_as_a_table_of_pandas() -> None:
    found = Listing([RUN, make_run("openai", bill=None, tags={"team": "a"})]).to_pandas()
    assert list(found["provider"]) == ["together", "openai"]
    assert found["bill_usd"].dtype == "float64" and found["bill_usd"].sum() == pytest.approx(0.76)
    assert isinstance(found["created_at"].dtype, pandas.DatetimeTZDtype)
    assert found["tags.team"].isna().tolist() == [True, False]


def test_metrics_as_a_table_of_pandas() -> None:
    points = [*POINTS, MetricPoint(step=11, values={"valid_loss": 0.5}, at=datetime.now(UTC))]
    found = Listing(points).to_pandas().set_index("step")
    assert found["train_loss"].mean() == pytest.approx(sum(p.values["train_loss"] for p in POINTS) / 10)
    assert found.loc[11, "valid_loss"] == 0.5 and pandas.isna(found.loc[11, "train_loss"])


def test_quotes_translations_scores_and_comparisons_as_tables_of_pandas() -> None:
    assert RUN.quote is not None
    lines = RUN.quote.to_pandas()
    assert (lines["quantity"] * lines["usd_per_unit"]).tolist() == pytest.approx(lines["usd"].tolist())
    assert TRANSLATION.to_pandas().set_index("name")["outcome"].to_dict() == {
        "epochs": "kept",
        "seed": "refused",
    }
    scores = make_result(RUN, 0.8).to_pandas()
    assert scores[scores["contender"] == RUN.id]["score"].tolist() == [0.8]
    both = compare([RUN, make_run("openai", bill=None)]).to_pandas().set_index("label")
    assert both.loc["together", "bill_usd"] == pytest.approx(float(Decimal("0.76")))
    assert list(both["settings.epochs"]) == ["3", "3"]


def test_every_error_is_to_be_had_at_the_top() -> None:
    raised = {
        name
        for name, one in inspect.getmembers(errors, inspect.isclass)
        if issubclass(one, errors.OrchestrateError)
    }
    assert raised - set(orchestrate.__all__) == set()
    assert all(getattr(orchestrate, name) is getattr(errors, name) for name in raised)
