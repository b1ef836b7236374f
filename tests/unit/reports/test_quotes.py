"""Quotes and whole costs side by side, and the sentences under them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.costing import BasePrice, Ownership, Prices, ServingUse, Traffic, own
from orchestrate.profile import profile
from orchestrate.reports import ownership_markdown, quote_markdown, quote_table, verdict
from orchestrate.reports.documents import plain_text
from orchestrate.reports.quotes import ownership_table, ownership_verdict
from orchestrate.types import Confidence, Quote, QuoteLine

TODAY = date(2026, 11, 25)


def line(
    usd: str, *, component: str = "training", unit: str = "usd_per_mtok", rate: str = "0.5", **more: Any
) -> QuoteLine:
    values: dict[str, Any] = {
        "component": component,
        "quantity": Decimal(1),
        "unit": unit,
        "usd_per_unit": Decimal(rate),
        "usd_low": Decimal(usd),
        "usd": Decimal(usd),
        "usd_high": Decimal(usd),
        "as_of": "2026-10-06",
    }
    return QuoteLine(**(values | more))


def quote(provider: str, *lines: QuoteLine, **changes: Any) -> Quote:
    total = sum((entry.usd for entry in lines), Decimal(0))
    values: dict[str, Any] = {
        "provider": provider,
        "model": "m",
        "lines": lines,
        "low_usd": total,
        "expected_usd": total,
        "high_usd": total,
        "billed_tokens": 1_000_000,
    }
    return Quote(**(values | changes))


def test_cheapest_first_and_unpriced_last() -> None:
    quotes = [quote("b", line("2")), quote("c", unavailable="no price was found"), quote("a", line("1"))]
    rows = quote_markdown(quotes, TODAY).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:5]] == ["| a", "| b", "| c"]
    assert "no price was found" in rows[4]
    assert "50 days old" in rows[2]


def test_verdict_by_rate() -> None:
    found = verdict([quote("b", line("2", rate="2")), quote("a", line("1", rate="1"))])
    assert found == (
        "a is the cheapest to train on ($1.00, compared with $2.00 on b): "
        "$1.00 per million tokens compared with $2.00."
    )


def test_prices_of_different_trainings_are_not_compared_in_silence() -> None:
    three, one = quote("openai", line("0.1"), epochs=3), quote("fireworks", line("0.004"), epochs=1)
    assert "1 epoch on fireworks and 3 epochs on openai" in verdict([three, one])
    assert "same training" not in verdict([three, quote("fireworks", line("0.004"), epochs=3)])


def test_verdict_by_minimum() -> None:
    small = quote("together", line("0.02"), line("3.98", component="minimum", unit="usd_per_job"))
    found = verdict([small, quote("fireworks", line("0.05"))])
    assert "its minimum per job adds $3.98" in found


def test_verdict_of_hours_against_tokens() -> None:
    hours = line("0.2", component="electricity", unit="usd_per_hour", rate="0.1", quantity=Decimal(2))
    found = verdict([quote("local", hours), quote("fireworks", line("0.5"))])
    assert "2h 00m at $0.10 per hour compared with 1,000,000 tokens at $0.50 per million" in found


def test_a_job_that_would_be_refused_stands_after_the_others_and_is_never_the_cheapest() -> None:
    quotes = [quote("a", line("1"), refused="a needs 10 rows, this has 5"), quote("b", line("2"))]
    rows = quote_markdown(quotes, TODAY).splitlines()
    assert [row.split(" | ")[0] for row in rows[2:4]] == ["| b", "| a"]
    assert "would be rejected: a needs 10 rows, this has 5" in rows[3]
    assert verdict(quotes) == "b is the only backend with a known price: $2.00 expected."
    assert "Every backend with a known price would reject this job. See the reason for each." in verdict(
        quotes[:1]
    )


def test_a_range_without_a_table_is_no_price() -> None:
    open_minimum = quote(
        "a",
        line("60"),
        expected_usd=None,
        low_usd=Decimal(4),
        high_usd=Decimal(60),
        undecided="its minimum is $4 to $60 by model",
    )
    row = quote_markdown([open_minimum], TODAY).splitlines()[2]
    assert "| ask with --live | $4.00 to $60.00 |" in row and "by model" in row and "$32" not in row
    assert verdict([open_minimum, quote("b", line("50"))]) == (
        "No backend is clearly the cheapest: b would cost $50.00 and a would cost $4.00 to $60.00."
    )
    assert verdict([open_minimum, quote("b", line("10")), quote("c", line("20"))]) == (
        "No backend is clearly the cheapest: b would cost $10.00 and a would cost $4.00 to $60.00."
    )
    assert verdict([open_minimum, quote("b", line("61"))]).startswith(
        "a is the cheapest to train on ($4.00 to $60.00, compared with $61.00 on b"
    )


def test_of_a_minimum_without_a_table_no_middle_is_told() -> None:
    topped = line("59", component="minimum", usd_low=Decimal(3), usd_high=Decimal(59))
    least, most = Decimal(4), Decimal(60)
    wide = quote(
        "a", line("1"), topped, low_usd=least, expected_usd=None, high_usd=most, undecided="by model"
    )
    found = verdict([quote("b", line("2.50")), wide])
    assert "b is the cheapest" in found and "its minimum per job adds $3.00 to $59.00" in found


def test_what_is_not_counted_is_said_and_leaves_the_end_open() -> None:
    found = quote("a", line("1"), open_end="3 images without a published rule")
    row = quote_markdown([found], TODAY).splitlines()[2]
    assert "$1.00 and more" in row and "not counted: 3 images" in row
    assert "No backend is clearly the cheapest" in verdict([found, quote("b", line("2"))])


def test_a_source_without_a_date_has_no_age() -> None:
    row = quote_markdown([quote("a", line("1", as_of="undated"))], TODAY).splitlines()[2]
    assert "| undated |" in row and "days old" not in row


def test_verdicts_that_cannot_be_given() -> None:
    assert "No backend" in verdict([quote("a", unavailable="x")])
    assert "only backend" in verdict([quote("a", line("1")), quote("b", unavailable="x")])
    assert "cost the same" in verdict([quote("a", line("1")), quote("b", line("1"))])
    wide = quote("a", line("1"), high_usd=Decimal(3))
    assert "their ranges overlap" in verdict([wide, quote("b", line("2"))])


def test_minimum_and_confidence_are_shown() -> None:
    topped = quote(
        "together", line("1", confidence=Confidence.OLD), line("3", component="minimum", unit="usd_per_job")
    )
    text = plain_text(quote_table([topped], TODAY))
    assert "the minimum adds $3.00" in text
    assert "old" in text


def test_markup_in_names_is_text() -> None:
    assert "[red]x[/]" in plain_text(quote_table([quote("[red]x[/]", line("1"))], TODAY))


def totals(base_usd: str = "0.002") -> list[Ownership]:
    traffic = Traffic(requests_per_day=Decimal(20_000), input_tokens=900, output_tokens=150)
    base = BasePrice(
        model="gpt 4.1", provider="openai", usd_per_request=Decimal(base_usd), input_tokens=900, source="t"
    )
    return [
        own(
            quote(provider, line("1")),
            ServingUse(traffic=traffic, months=6, base=base),
            profile=profile(provider),
            resolved=catalog.resolve(model, provider, TODAY),
            prices=Prices(provider, on=TODAY),
        )
        for provider, model in (
            ("together", "qwen3.5-9b"),
            ("fireworks", "qwen3.5-9b"),
            ("openai", "gpt-4o-mini"),
        )
    ]


def test_ownership_rows_and_verdict() -> None:
    found = totals()
    text = ownership_markdown(found)
    rows = text.splitlines()[2:5]
    assert [row.split(" | ")[0] for row in rows] == ["| together", "| fireworks", "| openai"]
    assert "shut down on 2027-01-14" in rows[2]
    verdict = ownership_verdict(found)
    assert verdict.startswith("together is the cheapest over 6 months, $24,047.20")
    assert "Tuning does not save money at this traffic. It pays off at" in verdict
    assert "never" in rows[0] and "at once" in rows[2]
    assert "dedicated H100" in plain_text(ownership_table(found))


def test_over_months_the_numbers_come_first_and_one_line_of_advice() -> None:
    found = totals()
    quotes = [total.training for total in found]
    short, whole = (plain_text(quote_table(quotes, TODAY, found, whole=all)) for all in (False, True))
    places = [
        short.index(words)
        for words in ("backend ", "trained and served", "is the cheapest over 6 months", "--all")
    ]
    assert places == sorted(places)
    assert "cheapest to train" not in short and short.count("is the cheapest over 6 months") == 1
    assert "one replica requires" in whole and "one replica requires" not in short
    assert set(short.splitlines()[:-1]) <= set(whole.splitlines()), "nothing is told otherwise"


def test_totals_tell_of_the_training_what_its_quote_does() -> None:
    total = totals()[0]
    wide = replace(
        total.training, low_usd=Decimal(4), expected_usd=None, high_usd=Decimal(60), undecided="by model"
    )
    row = ownership_markdown([replace(total, training=wide)]).splitlines()[2]
    assert "| $4.00 to $60.00 |" in row and "| $1.00 |" not in row
    unended = replace(total.training, open_end="3 images")
    assert " and more |" in ownership_markdown([replace(total, training=unended)]).splitlines()[2]


def test_ownership_that_saves() -> None:
    assert "Prompting gpt 4.1 would cost" in ownership_verdict(totals("0.02"))
    assert ownership_verdict(totals("0.02")).endswith("more.")


def test_no_total_no_verdict() -> None:
    nothing = Ownership(provider="a", model="m", months=6, training=quote("a"), unavailable="no price")
    assert "No backend" in ownership_verdict([nothing])
    assert "no price" in ownership_markdown([nothing])


def test_the_cheapest_is_told_with_epochs_that_differ() -> None:
    quotes = [quote("a", line("1"), epochs=1), quote("b", line("2"), epochs=3)]
    assert "1 epoch on a and 3 epochs on b. Set epochs" in verdict(quotes)
    alike = [replace(one, epochs=3) for one in quotes]
    assert "Set epochs" not in verdict(alike)
