"""What may be compared, what is said of it, and every text format."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.evaluation.pairs import Pairing
from orchestrate.reports import Comparison, RunDifference
from orchestrate.reports.compare import compare
from orchestrate.reports.rows import interval
from orchestrate.types import (
    Bill,
    Difference,
    Evaluation,
    Event,
    JobStatus,
    MetricPoint,
    Outcome,
    Run,
    Score,
    Setting,
    Translation,
)

Make = Callable[..., Run]
Points = Callable[..., list[MetricPoint]]
Result = Callable[..., Evaluation]


def aspects(comparison: Comparison) -> list[str]:
    return [reason.aspect for reason in comparison.reasons]


def test_equal_runs_are_comparable(run: Make, points: Points, result: Result) -> None:
    a, b = run("together"), run("fireworks")
    found = compare(
        [a, b], {a.id: points(), b.id: points()}, {a.id: [result(a, 0.9)], b.id: [result(b, 0.5)]}
    )
    assert found.comparable
    assert [c.label for c in found.runs] == ["together", "fireworks"]
    assert any("together scores best on exact_match" in text for text in found.findings)


def test_no_runs_is_an_error() -> None:
    with pytest.raises(UsageError, match="name the runs"):
        compare([])


def test_printed_it_is_a_few_lines_with_the_answer_first(run: Make, points: Points) -> None:
    runs = [run("together"), run("fireworks", dataset_digest="9" * 64)]
    found = compare(runs, {one.id: points() for one in runs})
    first, *others = str(found).splitlines()
    assert first == found.answer.sentence and len(others) == len(found.runs) + len(found.reasons)
    assert all(any(one.label in line for line in others) for one in found.runs)
    assert all(any(reason.text in line for line in others) for reason in found.reasons) and found.reasons


def test_one_run_twice_is_one(run: Make) -> None:
    assert len(compare([run("together"), run("together")]).runs) == 1


def test_different_data(run: Make) -> None:
    found = compare([run("together"), run("fireworks", dataset_digest="9" * 64)])
    assert aspects(found) == ["data"]
    assert "999999999999" in found.reasons[0].text
    assert not any("cheapest" in text for text in (found.answer.sentence, *found.findings))


def test_a_sandbox_is_not_the_real_host(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks", sandbox=True)
    found = compare([a, b], {}, {a.id: [result(a, 0.9)], b.id: [result(b, 0.5)]})
    assert "all" in aspects(found)
    assert found.sandbox
    assert found.runs[1].label == "fireworks (sandbox)"
    assert not any("scores best" in text or "cheapest" in text for text in found.findings)


def test_sandboxes_may_be_compared_with_each_other_and_are_marked(run: Make) -> None:
    found = compare([run("together", sandbox=True), run("fireworks", sandbox=True)])
    assert found.comparable
    for format in ("table", "md", "html"):
        assert found.render(format).count("SANDBOX") <= 4, format  # in the head, and as a chip
        assert "SANDBOX" in found.render(format)[: 4500 if format == "html" else 200], format
    assert [row["sandbox"] for row in csv.DictReader(io.StringIO(found.render("csv")))] == ["true", "true"]
    assert json.loads(found.render("json"))["sandbox"] is True


def test_what_a_sandbox_would_bill_is_not_called_billed(run: Make) -> None:
    found = compare([run("together", sandbox=True), run("fireworks", sandbox=True)])
    for format in ("table", "md", "html"):
        text = found.render(format)
        assert "would bill" in text, format
        assert "billed" not in text.replace("Nothing was billed", "").replace("billed tokens", ""), format
    assert "would bill" not in compare([run("together")]).render("html")


def test_different_models_have_different_losses(run: Make) -> None:
    found = compare([run("together"), run("fireworks", model="llama-3.3-70b")])
    assert aspects(found) == ["loss"]
    same = compare([run("together", model="Qwen/Qwen3.5-9B"), run("fireworks", model="qwen3.5-9b")])
    assert same.comparable  # two hosts' names of one model


def test_different_methods(run: Make) -> None:
    found = compare(
        [run("together"), run("fireworks", spec={"model": "m", "method": {"type": "dpo", "beta": 0.1}})]
    )
    assert any("methods differ" in reason.text for reason in found.reasons)


def test_scores_on_different_rows(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks")
    scores = {a.id: [result(a, 0.9)], b.id: [result(b, 0.5, items_digest="e" * 64)]}
    found = compare([a, b], {}, scores)
    assert any("different held-out rows" in reason.text for reason in found.reasons)
    assert not any("scores best" in text for text in found.findings)


def test_a_run_without_scores_or_an_end(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks", status=JobStatus.RUNNING, finished_at=None, bill=None)
    found = compare([a, b], {}, {a.id: [result(a, 0.9)]})
    assert {"scores", "all"} == set(aspects(found))
    assert any("fireworks is still running" in reason.text for reason in found.reasons)


def test_overlapping_intervals_show_no_difference(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks")
    found = compare([a, b], {}, {a.id: [result(a, 0.90)], b.id: [result(b, 0.91)]})
    assert any("no clear difference" in text for text in found.findings)


def test_runs_without_a_known_cost_do_not_cost_the_same(run: Make) -> None:
    found = compare([run("together"), run("fireworks"), run("local", status=JobStatus.RUNNING, bill=None)])
    assert "2 runs cost the same: $0.76." in found.findings


def test_the_cheapest_by_its_bill(run: Make) -> None:
    found = compare(
        [
            run("together"),
            run("local", bill=Bill(usd=Decimal("0.19"), origin="measured hours x rate")),
        ]
    )
    assert (
        "local is the cheapest to train: $0.19 (billed). together costs $0.76, 4.0 times as much."
        in found.findings
    )


def test_the_cheapest_of_those_with_a_known_cost_says_so(run: Make) -> None:
    unknown = run("fireworks", bill=None, quote=None)
    runs = [run("together"), run("local", bill=bill("0.19")), unknown]
    assert (
        "Apart from fireworks, whose cost is unknown, local is the cheapest to train: $0.19 (billed). "
        "together costs $0.76, 4.0 times as much." in compare(runs).findings
    )


def test_the_newest_score_counts(run: Make, result: Result) -> None:
    from datetime import timedelta

    a = run("together")
    old = result(a, 0.5)
    new = result(a, 0.8, created_at=old.created_at + timedelta(days=1))
    found = compare([a], {}, {a.id: [new, old]})
    assert [e.score.value for e in found.runs[0].scores] == [0.8]


def test_one_token_axis(run: Make, points: Points) -> None:
    a, b = run("together"), run("fireworks")
    found = compare([a, b], {a.id: points(), b.id: points(tokens=False)})
    told, spread = found.runs
    assert told.train_curve[-1].tokens == 200 * 7500
    assert spread.train_curve[-1].tokens == pytest.approx(1_500_000)  # trained tokens over all steps
    assert told.tokens_known and not spread.tokens_known
    assert any("spread evenly" in text and "fireworks" in text for text in found.notes)


def test_long_curves_are_thinned_and_bad_values_left_out(run: Make, points: Points) -> None:
    a = run("together", total_steps=5000)
    rows = [*points(steps=5000), MetricPoint(step=5001, values={"train_loss": float("nan")})]
    curve = compare([a], {a.id: rows}).runs[0].train_curve
    assert 200 <= len(curve) <= 300
    assert all(p.value == p.value for p in curve)


def test_the_loss_is_that_of_the_weights_that_a_run_left(run: Make) -> None:
    a, b = run("local"), run("together")
    points = [
        MetricPoint(step=step, values={"train_loss": loss, "valid_loss": loss})
        for step, loss in ((1, 0.9), (2, 0.4), (3, 0.6))
    ]
    best = MetricPoint(step=3, values={**points[2].values, "result_step": 2.0, "result_valid_loss": 0.4})
    found = compare([a, b], {a.id: [*points[:2], best], b.id: points}).runs
    assert {c.run.id: c.valid_loss for c in found} == {a.id: 0.4, b.id: 0.6}
    diverged = MetricPoint(step=4, values={}, not_finite=("valid_loss",))
    found = compare([a, b], {a.id: [*points[:2], best, diverged], b.id: [*points, diverged]}).runs
    assert {c.run.id: c.valid_loss for c in found} == {a.id: 0.4, b.id: None}, "not an earlier one"
    assert [p.value for p in found[0].valid_curve] == [0.9, 0.4, 0.6]


def test_settings_as_sent(run: Make) -> None:
    a = run("together")
    told = Translation(
        provider="together",
        model="m",
        body={},
        settings=(
            Setting(name="epochs", asked=3, outcome=Outcome.KEPT, sent=3),
            Setting(name="batch_size", outcome=Outcome.DEFAULTED, sent="max"),
        ),
    )
    assert compare([a], translations={a.id: told}).runs[0].settings == {
        "epochs": "3",
        "batch_size": "max (defaulted)",
    }
    assert compare([a]).runs[0].settings == {"epochs": "3", "adapter.type": "lora", "adapter.r": "16"}


def test_csv_is_data(run: Make, result: Result) -> None:
    a = run("together", model="=HYPERLINK(1)")
    [row] = csv.DictReader(io.StringIO(compare([a], {}, {a.id: [result(a, 0.9)]}).render("csv")))
    assert row["billed_usd"] == "0.76"
    assert row["seconds"] == "1320.0"  # from created to finished
    assert float(row["exact_match.tuned"]) == 0.9
    assert float(row["quote_error"]) == pytest.approx((0.75 - 0.76) / 0.76)
    assert row["model"] == "'=HYPERLINK(1)"  # a spreadsheet must not run it


def test_json_round_trip(run: Make, points: Points, result: Result) -> None:
    a = run("together")
    found = compare([a], {a.id: points()}, {a.id: [result(a, 0.9)]})
    value = json.loads(found.render("json"))
    assert value["comparable"] is True and value["runs"][0]["run"]["bill"]["usd"] == "0.76"
    del value["comparable"], value["sandbox"]
    assert Comparison.from_dict(value) == found


def test_markdown_puts_the_warning_before_the_numbers(run: Make) -> None:
    text = compare([run("together"), run("fireworks", model="a|b", dataset_digest="9" * 64)]).render("md")
    assert text.index("not comparable") < text.index("| run |")
    assert "a\\|b" in text


def test_saving_by_ending(run: Make, tmp_path: Path) -> None:
    found = compare([run("together")])
    for ending, start in (
        (".html", "<!doctype html>"),
        (".md", "# Comparison"),
        (".csv", "run,"),
        (".json", "{"),
    ):
        assert found.save(tmp_path / f"report{ending}").read_text().startswith(start)
    with pytest.raises(UsageError, match=r"\.html, \.htm, \.md"):
        found.save(tmp_path / "report.pdf")
    with pytest.raises(UsageError, match="the report format must be one of"):
        found.render("pdf")


# -- scores ------------------------------------------------------------------------------------------------


def gap(value: float, p: float, items: int = 10, first: int = 10, second: int = 10) -> RunDifference:
    """Of fireworks minus together."""
    score = Score(value=value, low=value - 0.3, high=value + 0.3, n=items)
    found = Difference(contender="b", against="a", metric="exact_match", score=score, p_value=p)
    pairing = Pairing(
        first="e1",
        second="e2",
        items=items,
        first_items=first,
        second_items=second,
        same_answers=4,
        differences=(found,),
    )
    return RunDifference(first="run-together", second="run-fireworks", pairing=pairing)


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (gap(0.0, 1.0), "together and fireworks have the same score on exact_match"),
        (gap(0.3, 0.125), "There is no clear difference on exact_match between together and fireworks"),
        (gap(0.3, 0.01), "fireworks scores higher than together on exact_match"),
        (gap(-0.3, 0.01), "together scores higher than fireworks on exact_match"),
    ],
)
def test_two_runs_are_told_apart_by_the_test_of_their_pairs(
    run: Make, result: Result, between: RunDifference, said: str
) -> None:
    a, b = run("together"), run("fireworks")
    found = compare([a, b], {}, {a.id: [result(a, 0.5)], b.id: [result(b, 0.8)]}, between=[between])
    [told] = [line for line in found.findings if line.startswith(said)]
    assert "10 rows" in told
    assert "intervals overlap" not in " ".join(found.findings)


def test_other_rows_are_compared_by_those_that_both_answered(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks")
    scores = {a.id: [result(a, 0.5, items=10)], b.id: [result(b, 0.8, items=20, items_digest="e" * 64)]}
    found = compare([a, b], {}, scores, between=[gap(0.3, 0.01, first=10, second=20)])
    [reason] = [r.text for r in found.reasons if r.aspect == "scores"]
    assert "together on 10 rows (ffffffffffff); fireworks on 20 rows (eeeeeeeeeeee)" in reason
    assert any("10 rows that both answered" in line for line in found.findings)
    apart = compare([a, b], {}, scores)
    assert not any("fireworks" in line and "together" in line for line in apart.findings if "exact" in line)


def test_the_words_are_those_of_the_p_value(run: Make, result: Result) -> None:
    a = run("together")
    one = result(a, 0.5)
    [d] = one.differences
    no = replace(d, gained=3, lost=0, p_value=0.125, p_corrected=0.125, score=replace(d.score, low=0.1, n=10))
    [told] = compare([a], {}, {a.id: [replace(one, differences=(no,))]}).findings
    assert "shows no clear difference from its base model" in told
    assert "p = 0.1250" in told and "3 rows improved and 0 got worse" in told
    [told] = compare([a], {}, {a.id: [one]}).findings
    assert "is better than its base model" in told


def test_a_host_that_answers_otherwise_is_told(run: Make, result: Result) -> None:
    a = run("together")
    for p, said in (
        (0.01, "may have changed the model"),
        (0.6, ", but no score changed by more than chance would explain."),
    ):
        pairing = gap(0.2, p).pairing
        found = compare([a], {}, {a.id: [result(a, 0.5)]}, answers={a.id: ([], [pairing])})
        assert any(said in line and "6 of 10 answers" in line for line in found.findings)
    assert "Repeated evaluations" in found.render("html")


def test_each_number_says_rows_and_who_answered(run: Make, result: Result) -> None:
    a = run("together")
    found = compare([a], {}, {a.id: [result(a, 0.5)]})
    for format in ("table", "md", "html", "csv"):
        text = found.render(format)
        for told in ("the adapter on this machine", "ffffffffffff", "200", "0.002"):
            assert told in text, (format, told)


def test_records_are_printed_as_a_line(run: Make) -> None:
    a = run("together", sandbox=True)
    assert str(a) == "run-together  together (sandbox)  qwen3.5-9b  succeeded"
    assert str(a.quote) == "together  qwen3.5-9b  $0.75 expected, $0.70 to $0.80"
    said = Event(id="1", at=a.created_at, level="error", message="out of memory")
    assert str(said) == "09:00:00  error: out of memory"


# -- the answer --------------------------------------------------------------------------------------------


def apart(first: str, second: str, value: float, p: float) -> RunDifference:
    """Of the second minus the first."""
    score = Score(value=value, low=value - 0.03, high=value + 0.03, n=200)
    found = Difference(contender=second, against=first, metric="exact_match", score=score, p_value=p)
    pairing = Pairing(
        first="e1",
        second="e2",
        items=200,
        first_items=200,
        second_items=200,
        same_answers=9,
        differences=(found,),
    )
    return RunDifference(first=first, second=second, pairing=pairing)


def bill(usd: str) -> Bill:
    return Bill(usd=Decimal(usd), origin="total_price")


def test_the_best_is_taken_when_a_difference_is_shown(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks", bill=bill("0.10"))
    scores = {a.id: [result(a, 0.9)], b.id: [result(b, 0.5)]}
    found = compare([a, b], {}, scores, between=[apart(a.id, b.id, -0.4, 0.001)]).answer
    assert found.run == a.id
    assert found.sentence == (
        "Take together: best on exact_match, 0.900 (0.870 to 0.925), against fireworks (+0.400 (+0.370 to "
        "+0.430), p = 0.0010, 200 rows), for $0.76 (billed) against $0.10 (billed)."
    )


def test_the_cheapest_is_taken_of_those_that_nothing_separates(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks", bill=bill("0.10"))
    scores = {a.id: [result(a, 0.91)], b.id: [result(b, 0.9)]}
    found = compare([a, b], {}, scores, between=[apart(a.id, b.id, -0.01, 0.6)]).answer
    assert found.run == b.id
    assert "the cheapest of the good runs at $0.10 (billed)" in found.sentence
    assert (
        "on exact_match, there is no clear difference from together (-0.010 (-0.040 to +0.020), p = 0.6000"
        in found.sentence
    )


def test_what_is_not_better_than_its_base_is_no_choice(run: Make, result: Result) -> None:
    a, b = run("together"), run("fireworks")
    one = result(a, 0.9)
    no = replace(one.differences[0], p_value=0.4, p_corrected=0.4)
    scores = {a.id: [replace(one, differences=(no,))], b.id: [result(b, 0.5)]}
    assert compare([a, b], {}, scores).answer.run == b.id
    neither = compare([a], {}, {a.id: scores[a.id]}).answer
    assert neither.run is None and neither.sentence.startswith(
        "The evidence is not sufficient to ship together"
    )


def test_many_runs_against_the_best_are_corrected_for_their_number(run: Make, result: Result) -> None:
    """Holm by hand: of p = 0.03 and 0.04 twice 0.03 is 0.06, so that neither differs from the best."""
    runs = [run("together"), run("fireworks", bill=bill("0.10")), run("local", bill=bill("0.20"))]
    scores = {r.id: [result(r, s)] for r, s in zip(runs, (0.95, 0.9, 0.91), strict=True)}
    pairs = [apart(runs[0].id, runs[1].id, -0.05, 0.03), apart(runs[0].id, runs[2].id, -0.04, 0.04)]
    assert compare(runs, {}, scores, between=pairs).answer.run == runs[1].id
    sure = [apart(runs[0].id, runs[1].id, -0.05, 0.02), apart(runs[0].id, runs[2].id, -0.04, 0.04)]
    assert compare(runs, {}, scores, between=sure).answer.run == runs[0].id


def test_nothing_is_chosen_where_nothing_can_be(run: Make, result: Result) -> None:
    failed = run("together", status=JobStatus.FAILED)
    assert compare([failed]).answer.sentence.startswith("No run has succeeded")
    mixed = compare([run("together"), run("fireworks", sandbox=True)]).answer
    assert mixed.run is None and "fireworks ran in a sandbox" in mixed.sentence
    unscored = compare([run("together"), run("local", bill=bill("0.02"))]).answer
    assert unscored.run is None and "orchestrate eval run-together run-local" in unscored.sentence
    assert "local is the cheapest to train at $0.02 (billed)" in unscored.sentence


# -- settings, tokens, the terminal ------------------------------------------------------------------------


def test_only_what_somebody_chose_differs(run: Make) -> None:
    def told(host: str, size: str, epochs: int) -> Translation:
        rows = (
            Setting(name="epochs", asked=epochs, outcome=Outcome.KEPT, sent=epochs),
            Setting(name="batch_size", outcome=Outcome.DEFAULTED, sent=size),
            Setting(name="seed", outcome=Outcome.DEFAULTED),
        )
        return Translation(provider=host, model="m", body={}, settings=rows)

    a, b = run("together"), run("fireworks")
    found = compare([a, b], translations={a.id: told("together", "max", 3), b.id: told("fireworks", "8", 4)})
    text = found.render("table")
    assert "epochs" in text and "batch_size" not in text
    assert "None" not in found.render("html") and "chosen by the host" in found.render("html")


def test_trained_and_billed_tokens_are_two(run: Make) -> None:
    [one] = compare([run("together", trained_tokens=1_200_000)]).runs
    assert (one.trained_tokens, one.billed_tokens) == (1_200_000, 1_500_000)


def test_a_comparison_of_four_fits_on_a_screen(run: Make, result: Result) -> None:
    from orchestrate.reports.documents import plain_text

    runs = [run(name) for name in ("together", "fireworks", "local", "openai")]
    scores = {r.id: [result(r, 0.9 + i / 100)] for i, r in enumerate(runs)}
    pairs = [apart(a.id, b.id, 0.01, 0.5) for i, a in enumerate(runs) for b in runs[i + 1 :]]
    text = plain_text(compare(runs, {}, scores, between=pairs).table(), 100)
    assert text.count("\n") <= 40
    assert text.splitlines()[0].startswith("Take openai: on exact_match, there is no clear difference from ")


def test_the_short_table_has_the_facts_that_decide(run: Make, points: Points, result: Result) -> None:
    from orchestrate.reports.documents import plain_text

    one = run("local")
    found = compare([one], {one.id: points()}, {one.id: [result(one, 0.9)]})
    short = plain_text(found.table(), 100)
    every = plain_text(found.table(whole=True), 100)
    for name in ("cost per answer", "time from creation to end", "train loss", "quoted", "billed"):
        assert any(line.startswith(name) for line in short.splitlines()), name
    assert "bill from" in every and "bill from" not in short


def test_each_score_of_two_contenders_is_on_one_line_of_80_columns(run: Make, result: Result) -> None:
    from orchestrate.reports.documents import evaluation_table, plain_text

    two = result(run("local", id="run-1r3wn3jccxqh"), 0.9)
    lines = plain_text(evaluation_table(two, ()), 80).splitlines()
    assert max(map(len, lines)) <= 80
    difference = interval(two.metrics[0], two.differences[0].score, signed=True)
    scores = [interval(two.metrics[0], one.score) for one in two.measures]
    assert len(scores) == 2
    for score in scores:
        [line] = [one for one in lines if score in one]
        assert line.startswith("exact_match")
    [below] = [one for one in lines if difference in one]
    assert two.differences[0].against in below


def test_an_evaluation_of_one_model_fits_a_narrow_terminal(run: Make, result: Result) -> None:
    from orchestrate.reports.documents import evaluation_table, plain_text

    two = result(run("local", id="run-1r3wn3jccxqh"), 0.9)
    mine, _ = two.measures
    one = replace(
        two, contenders=two.contenders[:1], measures=(mine, replace(mine, metric="token_f1")), differences=(),
        metrics=(*two.metrics, replace(two.metrics[0], name="token_f1")), against=None,
    )  # fmt: skip
    said = plain_text(evaluation_table(one, ()), 80)
    rows = [line for line in said.splitlines() if line.startswith(("exact_match", "token_f1"))]
    assert len(rows) == 2 and all("0.900 (0.870 to 0.925)" in row and row.endswith("200") for row in rows)
    assert "against" not in said and "against" in plain_text(evaluation_table(two, ()), 80)
