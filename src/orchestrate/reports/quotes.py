"""Render quotes and total costs side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate import text
from orchestrate.core import days
from orchestrate.core.tables import TextTable
from orchestrate.costing import Ownership, Paid, age_days, cheapest, worst_confidence
from orchestrate.types import Confidence, PriceRange, Quote

if TYPE_CHECKING:
    from rich.console import RenderableType

_QUOTE_COLUMNS = ("backend", "model", "expected", "low to high", "tokens billed", "time", "price", "notes")
_SHORT = {"tokens billed": "tokens", "price": "price age"}
"""Shorter column titles for the terminal, as {column: title}. In the terminal, the price column shows only
how old the price is."""
_OWN_COLUMNS = (
    "trained and served",
    "model",
    "training",
    "per month",
    "total",
    "low to high",
    "pays off",
    "always from",
    "serving",
)
_SHOWN_ELSEWHERE = 2
"""Number of other serving options to show per backend, cheapest first. `--json` shows all."""


def _sorted(quotes: Sequence[Quote]) -> list[Quote]:
    return sorted(quotes, key=lambda q: (q.rank, q.provider))


def _row(quote: Quote, today: date) -> tuple[str, ...]:
    price, backend = quote.price, quote.provider + text.SANDBOX_MARK * quote.sandbox
    if price is None:
        word = "no price" if quote.unavailable else "refused"
        return (backend, quote.model, word, *[text.NOTHING] * 4, "; ".join(_remarks(quote)))
    return (
        backend,
        quote.model,
        "ask with --live" if quote.undecided else text.money(price.expected_usd),
        text.span(price.low_usd, price.high_usd) + (" and more" if quote.open_end else ""),
        text.count(quote.billed_tokens),
        text.duration(quote.train_seconds),
        _price_age(quote, today),
        "; ".join(_remarks(quote)),
    )


def _price_age(quote: Quote, today: date) -> str:
    age = age_days(quote, today)
    known = worst_confidence(quote)
    word = "" if known is Confidence.QUOTED else f", {known.value}"
    dated = any(entry.as_of and entry.as_of != "undated" for entry in quote.lines)
    if age is None and not dated and any(entry.as_of for entry in quote.lines):
        return f"undated{word}"
    return f"{max(0, age)} days old{word}" if age is not None else known.value


def _remarks(quote: Quote) -> list[str]:
    if quote.unavailable:
        return [quote.unavailable]
    topped = [e for e in quote.lines if e.component == "minimum" and e.usd > 0]
    if quote.refused:
        return [f"would be rejected: {quote.refused}", *quote.warnings]
    found: list[str] = []
    if quote.unlisted:
        found.append(f"not ranked: {quote.unlisted}")
    if quote.open_end:
        found.append(f"not counted: {quote.open_end}")
    if quote.undecided:
        found.append(quote.undecided)
    else:
        found += [f"the minimum adds {text.money(e.usd)}" for e in topped]
    if quote.served:
        found.append(quote.served if quote.served == "only downloaded" else f"served {quote.served}")
    return [*found, *quote.warnings]


def _usd(quote: Quote, price: PriceRange) -> str:
    known = text.span(price.low_usd, price.high_usd) if quote.undecided else text.money(price.expected_usd)
    return f"{known} or more" if quote.open_end else known


def verdict(quotes: Sequence[Quote]) -> str:
    """State in one sentence which backend is the cheapest to train on and why, or that there is no clear
    answer."""
    priced = [(q, q.price) for q in _sorted(quotes) if q.ranked and q.price is not None]
    if not priced:
        if any(q.unlisted and not q.why_none for q in quotes):
            return (
                "No backend with a known price has confirmed that it accepts this job. See the reason "
                "for each."
            )
        if any(q.unavailable is None for q in quotes):
            return "Every backend with a known price would reject this job. See the reason for each."
        return "No backend has a known price for this job. See the reason for each."
    (first, price), *others = priced
    if not others:
        return f"{first.provider} is the only backend with a known price: {_usd(first, price)} expected."
    # An undecided price is ranked by its high end, but the actual price may be as low as its low end.
    perhaps = next((one for one in others if one[0].undecided and one[1].low_usd < price.counted_usd), None)
    second, other = perhaps or others[0]
    if first.open_end or perhaps:
        return (
            f"No backend is clearly the cheapest: {first.provider} would cost "
            f"{_usd(first, price)} and {second.provider} would cost {_usd(second, other)}."
        )
    gap = f"{_usd(first, price)}, compared with {_usd(second, other)} on {second.provider}"
    if price.high_usd > other.low_usd and price.expected_usd != other.expected_usd:
        caveat = ", although their ranges overlap"
    elif price.expected_usd == other.expected_usd:
        return f"{first.provider} and {second.provider} cost the same to train: {_usd(first, price)}."
    else:
        caveat = ""
    sentence = (
        f"{first.provider} is the cheapest to train on ({gap}{caveat}): {_why(first, price, second, other)}."
    )
    return f"{sentence}{_unlike([quote for quote, _ in priced])}"


def _unlike(priced: Sequence[Quote]) -> str:
    """Warn if the backends train for different numbers of epochs, because then their prices are not for the
    same training."""
    epochs = {quote.provider: quote.epochs for quote in priced if quote.epochs is not None}
    if len(set(epochs.values())) < 2:
        return ""
    each = text.joined([f"{text.count(n, 'epoch')} on {name}" for name, n in epochs.items()])
    return (
        f" These prices are not for the same amount of training: {each}. Set epochs to make them comparable."
    )


def _why(first: Quote, price: PriceRange, second: Quote, other_price: PriceRange) -> str:
    topped = next((e for e in second.lines if e.component == "minimum" and e.usd > 0), None)
    if topped is not None and other_price.counted_usd - topped.usd <= price.counted_usd:
        return (
            f"{second.provider}'s rate would be lower, but its minimum per job adds "
            f"{text.span(topped.usd_low, topped.usd_high) if second.undecided else text.money(topped.usd)}"
        )
    unit = next((e for e in first.lines if e.component == "training"), None)
    other = next((e for e in second.lines if e.component == "training"), None)
    if unit and other and unit.unit == other.unit == "usd_per_mtok":
        return (
            f"{text.rate(unit.usd_per_unit)} per million tokens compared with {text.rate(other.usd_per_unit)}"
        )
    return f"{_basis(first)} compared with {_basis(second)}"


def _basis(quote: Quote) -> str:
    """Return the basis of the price: tokens at a rate, or hours at a rate."""
    main = max(quote.lines, key=lambda e: e.usd, default=None)
    if main is None:
        return "nothing"
    if main.unit == "usd_per_mtok":
        return (
            f"{text.count(float(main.quantity) * 1e6)} tokens at {text.rate(main.usd_per_unit)} per million"
        )
    if main.unit == "usd_per_hour":
        return f"{text.duration(float(main.quantity) * 3600)} at {text.rate(main.usd_per_unit)} per hour"
    return f"{text.money(main.usd)} of {main.component}"


def quote_table(
    quotes: Sequence[Quote],
    today: date | None = None,
    totals: Sequence[Ownership] = (),
    *,
    whole: bool = False,
) -> RenderableType:
    """Return the quotes for a terminal: a table with one row per backend, cheapest first, then the verdict
    and the notes on each backend. `totals` adds the total costs over several months. `whole` shows how
    serving costs were calculated."""
    from rich.console import Group
    from rich.text import Text

    on = today or days.today()
    *numbers, _ = _QUOTE_COLUMNS
    table = TextTable(
        *(_SHORT.get(name, name) for name in numbers), right=("expected", "tokens"), fold=("model",)
    )
    notes = TextTable("", "")
    for quote in _sorted(quotes):
        style = "dim" if quote.price is None else None
        *cells, _ = _row(quote, on)
        table.add_row(*map(_narrow, cells), style=style)
        _note(notes, quote)
    parts: list[RenderableType] = [table, Text()]
    if not totals:
        return Group(*parts, Text(verdict(quotes), style="bold"), notes)
    parts += [_own_numbers(totals), Text(), Text(ownership_verdict(totals), style="bold"), notes]
    if whole:
        return Group(*parts, *_own_notes(totals))
    return Group(*parts, Text("to show assumptions and other serving options: --all", style="dim"))


def _note(notes: TextTable, quote: Quote) -> None:
    """Return the notes on a backend, under its name."""
    remarks = _remarks(quote)
    known = worst_confidence(quote)
    if quote.price is not None and known is not Confidence.QUOTED:
        remarks.append(f"its price is {known.value}")
    name = quote.provider
    for remark in remarks:
        notes.add_row(name, remark)
        name = ""
    if quote.assumptions:
        notes.add_row(name, "; ".join(quote.assumptions), style="dim")


def _narrow(cell: str) -> str:
    """Shorten a cell for the terminal: a path to its last part, and an age to days without the confidence,
    which a note states."""
    return re.sub(r" days old(, \w+)?", " d", cell.rsplit("/", 1)[-1])


def quote_markdown(quotes: Sequence[Quote], today: date | None = None) -> str:
    """Return the content of `quote_table` as a Markdown table, followed by the verdict."""
    rows = [_row(quote, today or days.today()) for quote in _sorted(quotes)]
    return f"{markdown_table(_QUOTE_COLUMNS, rows)}\n\n{verdict(quotes)}\n"


# -- over months -------------------------------------------------------------------------------------------


def _owned(total: Ownership) -> tuple[str, ...]:
    paid, once, month = total.paid, total.training.price, total.monthly_usd
    if paid is None or once is None or month is None:
        return (total.place, total.model, "no price", *[text.NOTHING] * 5, total.unavailable or "")
    pays = "never"
    if total.break_even_months is not None:
        pays = (
            "at once" if total.break_even_months < Decimal("0.1") else f"month {total.break_even_months:.1f}"
        )
    since = total.break_even_requests_per_day
    end = ""
    if total.serves_until:
        end = f"; shut down on {total.serves_until}, so only {total.months_served:.1f} months count"
    if total.training.unlisted:
        end += f"; {total.training.unlisted}"
    compared = total.base is not None
    training = total.training
    return (
        total.place,
        total.model,
        text.span(once.low_usd, once.high_usd) if training.undecided else text.money(once.expected_usd),
        text.money(month),
        text.span(paid.least_usd, paid.counted_usd),
        text.span(paid.low_usd, paid.high_usd) + (" and more" if training.open_end else ""),
        pays if compared else text.NOTHING,
        _traffic(since, total.most_requests_per_day) if compared else text.NOTHING,
        total.serving + end,
    )


def _traffic(since: Decimal | None, most: Decimal | None) -> str:
    if since is None:
        return "no traffic"
    words = f"{since:,} req/day" if since > 0 else "any traffic"
    return f"{words} to {most:,}" if most is not None else words


def _by_total(totals: Sequence[Ownership]) -> list[Ownership]:
    """Sort the options: available ones first, then by price. Includes only the cheapest of each backend's
    other serving options."""
    shown = [way for total in totals for way in total.options[: 1 + _SHOWN_ELSEWHERE]]
    return sorted(
        shown,
        key=lambda t: (t.unavailable is not None, not t.training.ranked, t.serves_until is not None, t.rank),
    )


def ownership_verdict(totals: Sequence[Ownership]) -> str:
    """State which backend has the lowest total cost among those that serve the model for the entire period,
    and what prompting the base model would cost."""
    best = cheapest(totals)
    paid = best.paid if best is not None else None
    if best is None or paid is None:
        return "No backend with a known price serves the tuned model for the entire period."
    months = f"{best.months} month{'s' if best.months != 1 else ''}"
    cost = text.span(paid.least_usd, paid.counted_usd)
    perhaps = _perhaps_cheaper(totals, best, paid)
    if perhaps is not None:
        unclear = f"No backend is clearly the cheapest over {months}"
        sentence = f"{unclear}: {best.place} would cost {cost}, {perhaps}."
    else:
        sentence = f"{best.place} is the cheapest over {months}, {cost}: {best.serving}."
    if best.base is None or best.base_usd is None:
        return sentence
    sentence += f" Prompting {best.base_words} would cost {text.money(best.base_usd)}"
    since, most = best.break_even_requests_per_day, best.most_requests_per_day
    if paid.counted_usd < best.base_usd:
        steps = since is not None and since > best.requests_per_day
        always = f". Tuning always pays off at {since:,} or more requests per day" if steps else ""
        return f"{sentence}, {text.money(best.base_usd - paid.counted_usd)} more{always}."
    less = f"{text.money(paid.counted_usd - best.base_usd)} less. Tuning does not save money at this traffic"
    if since is None:
        return f"{sentence}, {less}, nor at higher traffic."
    upto = f", up to its capacity of {most:,}" if most is not None else ""
    return f"{sentence}, {less}. It pays off at {since:,} or more requests per day{upto}."


def _perhaps_cheaper(totals: Sequence[Ownership], best: Ownership, paid: Paid) -> str | None:
    """Describe an option that may be cheaper than the cheapest one, because the price of its training is
    undecided."""
    same = (best.provider, best.server)
    ways = (way for total in totals for way in total.options if (way.provider, way.server) != same)
    had = (w for w in ways if not (w.unavailable or w.serves_until) and w.training.ranked)
    found = ((way, way.paid) for way in had if way.expected_usd is None)
    return next(
        (
            f"{way.place} {text.span(its.least_usd, its.counted_usd)}"
            for way, its in found
            if its is not None and its.least_usd < paid.counted_usd
        ),
        None,
    )


def _remarks_of(totals: Sequence[Ownership]) -> list[tuple[str, list[str]]]:
    """Group the assumptions by serving location. List those that apply to all locations only once."""
    places: dict[str, dict[str, None]] = {}
    for total in _by_total(totals):
        at = f"served at {total.server}" if total.server else total.provider
        places.setdefault(at, {}).update(dict.fromkeys(total.assumptions))
    nonempty = [remarks for remarks in places.values() if remarks]
    common = (
        [r for r in nonempty[0] if all(r in remarks for remarks in nonempty)] if len(nonempty) > 1 else []
    )
    lines = [(at, [r for r in remarks if r not in common]) for at, remarks in places.items()]
    return [(at, remarks) for at, remarks in [*lines, ("everywhere", common)] if remarks]


def _unpriced(totals: Sequence[Ownership]) -> list[str]:
    """List the other serving options without a price, with the reasons, and the number of options that only
    the JSON shows."""
    lines = dict.fromkeys(
        f"{way.server}: {way.unavailable}" for total in totals for way in total.elsewhere if way.unavailable
    )
    more = sum(max(0, len(t.elsewhere) - _SHOWN_ELSEWHERE) for t in totals)
    return [*lines, *([f"{text.count(more, 'more expensive option')} for serving: --json"] if more else [])]


def ownership_table(totals: Sequence[Ownership]) -> RenderableType:
    """Return the total costs for a terminal: training, monthly cost, total and break-even of each backend,
    then the verdict and the assumptions."""
    from rich.console import Group
    from rich.text import Text

    conclusion = Text(ownership_verdict(totals), style="bold")
    return Group(_own_numbers(totals), Text(), conclusion, *_own_notes(totals))


def _own_numbers(totals: Sequence[Ownership]) -> TextTable:
    """Build the table of totals. Omits the models, which the quotes name, and backends that have no price for
    the training."""
    names = [name for name in _OWN_COLUMNS if name != "model"]
    table = TextTable(*names, right=("training", "per month", "total"))
    for total in _by_total(totals):
        if not total.training.unavailable:
            cells = [c for name, c in zip(_OWN_COLUMNS, _owned(total), strict=True) if name != "model"]
            table.add_row(*cells, style="dim" if total.unavailable else None)
    return table


def _own_notes(totals: Sequence[Ownership]) -> list[RenderableType]:
    from rich.text import Text

    notes = TextTable("", "")
    for place, remarks in _remarks_of(totals):
        for number, remark in enumerate(remarks):
            notes.add_row("" if number else place, remark, style="dim")
    return [notes, *(Text(line, style="dim") for line in _unpriced(totals))]


def ownership_markdown(totals: Sequence[Ownership]) -> str:
    rows = [_owned(total) for total in _by_total(totals)]
    return f"{markdown_table(_OWN_COLUMNS, rows)}\n\n{ownership_verdict(totals)}\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a Markdown table. Escapes characters that would end a cell or form HTML or a link."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in row) + " |" for row in lines)


def _cell(value: str) -> str:
    return markdown_text(value).replace("|", "\\|").replace("\n", " ")


def markdown_text(value: str) -> str:
    """Escape HTML, links and images in external text, for use in Markdown."""
    value = re.sub(r"[\\\[\]`]", r"\\\g<0>", value).replace("<", "&lt;")
    # Markdown viewers also turn bare URLs into links.
    return value.replace("://", "&#58;//").replace("www.", "www&#46;")
