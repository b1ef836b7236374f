"""Score each answer, and compute metrics and paired differences, in total and by slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from msgspec.structs import replace

from orchestrate.evaluation import Answer, Item, Mark, ScoredItem, statistics
from orchestrate.evaluation.metrics.base import Metric, PairMetric, PerAnswer, Totals
from orchestrate.evaluation.metrics.labels import F1, LabelSet, confusion
from orchestrate.types import Confusion, Difference, Measure, MetricUsed, Score


@dataclass(frozen=True)
class Side:
    """A contender's name and its answers, one per item and sample."""

    name: str
    answers: Sequence[tuple[Answer, ...]]


@dataclass(frozen=True)
class Scored:
    measures: tuple[Measure, ...]
    differences: tuple[Difference, ...]
    confusions: tuple[Confusion, ...]
    answered: tuple[ScoredItem, ...]
    both_answered: Mapping[str, Difference] = field(default_factory=dict[str, Difference])
    """Difference in the first metric between a contender and its rival, as `{contender: difference}`, over
    the items that the rival answered. Only contains contenders whose rival left some items unanswered."""
    beside: tuple[Difference, ...] = ()


def score(
    items: Sequence[Item],
    sides: Sequence[Side],
    metrics: Sequence[Metric | PairMetric],
    rivals: Mapping[str, str],
    references: Sequence[tuple[str, str]] = (),
) -> Scored:
    """Score each side (a contender's answers) on each metric, and compare it with its rival, if it has one.
    Verdicts use only the first metric (see `_corrected`). `references` lists additional pairs of sides to
    compare on the first metric."""
    columns: dict[tuple[str, str], MetricColumn] = {}
    theirs: dict[tuple[str, str], MetricColumn] = {}
    for metric in metrics:
        for side in sides:
            rival = next((one for one in sides if one.name == rivals.get(side.name)), None)
            if isinstance(metric, Metric):
                columns[side.name, metric.used.name] = MetricColumn.of(items, side.answers, metric)
            elif rival is not None:
                key = side.name, metric.used.name
                columns[key], theirs[key] = beside(items, side.answers, rival.answers, metric)
    groups: dict[str, list[int]] = {"": list(range(len(items)))}
    for i, item in enumerate(items):
        for name in item.slices:
            groups.setdefault(name, []).append(i)
    measures: list[Measure] = []
    differences: list[Difference] = []
    for metric in metrics:
        for slice, places in sorted(groups.items()):
            for side in sides:
                column = columns.get((side.name, metric.used.name))
                if column is None:
                    continue
                found = column.score(places)
                measures.append(
                    Measure(contender=side.name, metric=metric.used.name, score=found, slice=slice)
                )
                if (against := rivals.get(side.name)) is not None:
                    key = side.name, metric.used.name
                    rival = theirs.get(key) or columns[against, metric.used.name]
                    difference = column.difference(rival, places, side.name, against)
                    differences.append(replace(difference, slice=slice))
    first = metrics[0].used.name
    measured = _Measured(
        first,
        {side: column for (side, metric), column in columns.items() if metric == first},
        {side: column for (side, metric), column in theirs.items() if metric == first},
    )
    return Scored(
        tuple(measures),
        tuple(_corrected(differences, first)),
        tuple(_confusions(items, sides, metrics)),
        tuple(_answered(items, sides, metrics, columns)),
        _both_answered(measured, differences, sides),
        tuple(
            columns[one, first].difference(columns[other, first], groups[""], one, other)
            for one, other in references
            if (one, first) in columns and (other, first) in columns and isinstance(metrics[0], Metric)
        ),
    )


@dataclass(frozen=True)
class _Measured:
    """The columns of the first metric."""

    name: str
    own: Mapping[str, MetricColumn]
    theirs: Mapping[str, MetricColumn]


def _both_answered(
    measured: _Measured, differences: Sequence[Difference], sides: Sequence[Side]
) -> dict[str, Difference]:
    """Compute `Scored.both_answered`, corrected over the contenders like the differences on all items."""
    overall = [d for d in differences if d.metric == measured.name and not d.slice]
    answers = {side.name: side.answers for side in sides}
    found: dict[str, Difference] = {}
    for d in overall:
        given = [all(a.error is None for a in own) for own in answers[d.against]]
        if not all(given):
            rival = measured.theirs.get(d.contender) or measured.own[d.against]
            places = [i for i, there in enumerate(given) if there]
            found[d.contender] = measured.own[d.contender].difference(rival, places, d.contender, d.against)
    corrected = statistics.holm([found.get(d.contender, d).p_value or 0.0 for d in overall])
    for d, p in zip(overall, corrected, strict=True):
        if d.contender in found:
            found[d.contender] = replace(found[d.contender], p_corrected=p)
    return found


@dataclass(frozen=True)
class MetricColumn:
    """One contender's scores on one metric."""

    metric: Metric
    items: Sequence[Item]
    marks: Sequence[tuple[Mark, ...]]
    values: Sequence[float | None] = field(default=())
    """One value per item: the mean over its samples."""
    parts: Sequence[Totals | None] = field(default=())
    """For metrics with parts, one entry per item: the parts, summed over the item's samples."""

    @classmethod
    def of(cls, items: Sequence[Item], answers: Sequence[tuple[Answer, ...]], metric: Metric) -> MetricColumn:
        pairs = [(i, item, a) for i, (item, own) in enumerate(zip(items, answers, strict=True)) for a in own]
        answered = [(item, a) for _, item, a in pairs if a.error is None]
        given = iter(metric.marks(answered))
        wrong = Mark(
            None if metric.used.kind == "amount" else 0.0, "no answer: the host rejected the question"
        )
        marks: list[list[Mark]] = [[] for _ in items]
        parts: list[Totals | None] = [None] * len(items)
        for i, item, a in pairs:
            mark = next(given) if a.error is None else wrong
            marks[i].append(mark)
            if mark.value is not None and (more := metric.parts(item, a, mark)) is not None:
                before = parts[i]
                parts[i] = more if before is None else [x + y for x, y in zip(before, more, strict=True)]
        values = [_mean([m.value for m in own]) for own in marks]
        return cls(metric, items, [tuple(own) for own in marks], values, parts)

    @property
    def adds_up(self) -> bool:
        return any(part is not None for part in self.parts)

    @property
    def used(self) -> MetricUsed:
        return self.metric.used

    @property
    def flips(self) -> bool:
        """True if each item has a single answer, which is either right or wrong, and items are not
        clustered."""
        alone = not any(item.cluster for item in self.items)
        once = all(len(own) == 1 for own in self.marks)
        return self.used.kind == "right-or-wrong" and once and alone

    def score(self, places: Sequence[int]) -> Score:
        here = [i for i in places if self.values[i] is not None]
        values = [self.values[i] or 0.0 for i in here]
        if self.adds_up and here:
            return statistics.ratio(
                [self.parts[i] or () for i in here],
                self.metric.total,
                self._clusters(here),
                _within(self.used),
            )
        if self.flips:
            return statistics.wilson(round(sum(values)), len(values))
        return statistics.mean(values, self._clusters(here), _within(self.used))

    def difference(self, rival: MetricColumn, places: Sequence[int], name: str, against: str) -> Difference:
        here = [i for i in places if self.values[i] is not None and rival.values[i] is not None]
        pairs = [(self.values[i] or 0.0, rival.values[i] or 0.0) for i in here]
        found = paired(
            self.used, pairs, self._clusters(here), name, against, alone=self.flips and rival.flips
        )
        if not self.adds_up or not here:
            return found
        mine, theirs = ([c.parts[i] or () for i in here] for c in (self, rival))
        score, p = statistics.ratio_difference(
            mine, theirs, self.metric.total, self._clusters(here), _apart(self.used)
        )
        return replace(found, score=score, p_value=p, detectable=_detectable(score))

    def _clusters(self, places: Sequence[int]) -> list[str]:
        return [self.items[i].cluster or f"\0{self.items[i].id}" for i in places]


def beside(
    items: Sequence[Item],
    answers: Sequence[tuple[Answer, ...]],
    rival: Sequence[tuple[Answer, ...]],
    metric: PairMetric,
) -> tuple[MetricColumn, MetricColumn]:
    """Compare two sides sample by sample with a pairwise metric. A side without an answer loses. If neither
    side has an answer, the sample is a tie."""
    pairs = [
        (i, item, a, b)
        for i, (item, own, other) in enumerate(zip(items, answers, rival, strict=True))
        for a, b in zip(own, other, strict=False)
    ]
    given = iter(metric.marks([(item, a, b) for _, item, a, b in pairs if a.error is b.error is None]))
    marks: list[list[Mark]] = [[] for _ in items]
    for i, _, a, b in pairs:
        if a.error is b.error is None:
            marks[i].append(next(given))
        else:
            value = 0.5 if None not in (a.error, b.error) else float(a.error is None)
            marks[i].append(Mark(value, "no answer: the host rejected the question"))
    turned = [[Mark(None if m.value is None else 1 - m.value, m.note) for m in own] for own in marks]
    alone = PerAnswer(metric.used, lambda item, answer: None)
    first, second = (
        MetricColumn(
            alone,
            items,
            [*map(tuple, side)],
            [_mean([m.value for m in own]) for own in side],
            [None] * len(items),
        )
        for side in (marks, turned)
    )
    return first, second


def paired(
    used: MetricUsed,
    pairs: Sequence[tuple[float, float]],
    clusters: Sequence[str],
    name: str,
    against: str,
    *,
    alone: bool,
) -> Difference:
    """Return the mean paired difference between two contenders. Pass `alone=True` if each item has a single
    right-or-wrong answer and items are not clustered."""
    gained = lost = 0
    if used.kind == "right-or-wrong":
        gained, lost = sum(a > b for a, b in pairs), sum(a < b for a, b in pairs)
    if alone:
        score, p = statistics.paired_interval(gained, lost, len(pairs)), statistics.mcnemar(gained, lost)
    else:
        score, p = statistics.mean_test([a - b for a, b in pairs], clusters, _apart(used))
    return Difference(
        contender=name,
        against=against,
        metric=used.name,
        score=score,
        gained=gained,
        lost=lost,
        p_value=p,
        detectable=_detectable(score),
    )


def _detectable(score: Score) -> float:
    return statistics.REACH * statistics.standard_error(score)


def _within(used: MetricUsed) -> tuple[float, float] | None:
    return None if used.kind == "amount" else (0.0, 1.0)


def _apart(used: MetricUsed) -> tuple[float, float] | None:
    """Return the range of possible differences."""
    return None if used.kind == "amount" else (-1.0, 1.0)


def _mean(values: Sequence[float | None]) -> float | None:
    there = [v for v in values if v is not None]
    return fmean(there) if there else None


def _corrected(differences: Sequence[Difference], first: str) -> list[Difference]:
    """Apply Holm's correction in two families: the first metric on all items, which was chosen in advance,
    and all other metrics and slices."""
    found = list(differences)
    chosen = [i for i, d in enumerate(found) if d.metric == first and not d.slice]
    for family in (chosen, [i for i in range(len(found)) if i not in set(chosen)]):
        corrected = statistics.holm([found[i].p_value or 0.0 for i in family])
        for i, p in zip(family, corrected, strict=True):
            found[i] = replace(found[i], p_corrected=p)
    return found


def _confusions(
    items: Sequence[Item], sides: Sequence[Side], metrics: Sequence[Metric | PairMetric]
) -> list[Confusion]:
    if not any(isinstance(m, F1) or m.used.name == "accuracy" for m in metrics):
        return []
    labels = LabelSet.of(items)
    return [
        confusion(
            side.name, labels, [(i, a) for i, own in zip(items, side.answers, strict=True) for a in own]
        )
        for side in sides
    ]


def _answered(
    items: Sequence[Item],
    sides: Sequence[Side],
    metrics: Sequence[Metric | PairMetric],
    columns: dict[tuple[str, str], MetricColumn],
) -> list[ScoredItem]:
    return [
        ScoredItem(
            item=item,
            answers={side.name: side.answers[i] for side in sides},
            marks={
                side.name: {
                    m.used.name: columns[side.name, m.used.name].marks[i]
                    for m in metrics
                    if (side.name, m.used.name) in columns
                }
                for side in sides
            },
        )
        for i, item in enumerate(items)
    ]
