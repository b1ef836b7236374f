"""The search space of a sweep: values to choose from, and ranges."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from orchestrate.errors import UsageError
from orchestrate.spec import specfile
from orchestrate.types import Search

PROVIDER = "provider"
"""Name of the setting that varies the backend. All other names are fields of the spec."""
SHARE = "share"
"""Name of the setting that varies which training rows are used. A number is the fraction of the rows, and
larger fractions include all rows of smaller ones. A string is the path of a file with selected rows."""
Settings = Mapping[str, Any]
Range = tuple[float, float, bool]
_FIXED = ("train", "validation", "test", "columns", "tags", "max_cost_usd", "private")
"""Fields of the spec that a sweep must not vary. For example, trials on different rows would not be
comparable."""


@dataclass(frozen=True)
class Space:
    """A search space, keyed by dotted setting names. Each range is a tuple (low, high, log scale)."""

    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict[str, tuple[Any, ...]])
    ranges: Mapping[str, Range] = field(default_factory=dict[str, Range])

    @property
    def names(self) -> list[str]:
        return [*self.choices, *self.ranges]

    @property
    def size(self) -> int:
        """The number of combinations."""
        return math.prod(map(len, self.choices.values()))

    def combinations(self) -> Iterator[dict[str, Any]]:
        """Yield all combinations of the choices, without the ranges. Yields lazily, because there may be
        millions."""
        for values in itertools.product(*self.choices.values()):
            yield dict(zip(self.choices, values, strict=True))


def of(search: Search) -> Space:
    return Space(search.choices, search.ranges)


def parse(grid: Iterable[str], ranges: Iterable[str]) -> Space:
    """Parse a search space from grids such as `["learning_rate=1e-4,2e-4"]` and ranges such as
    `["learning_rate=1e-5:1e-3:log"]`. Values are parsed as YAML. Raises `UsageError` for invalid or repeated
    settings."""
    each_choice, each_range = [_choice(pair) for pair in grid], [_range(pair) for pair in ranges]
    choices, bounds = dict(each_choice), dict(each_range)
    if both := choices.keys() & bounds.keys():
        raise UsageError(f"{sorted(both)[0]} is both in --grid and in --range: use one of them")
    counted = Counter(name for name, _ in (*each_choice, *each_range))
    if twice := [name for name, times in counted.items() if times > 1]:
        raise UsageError(f"{twice[0]} is given twice: put all its values in one --grid")
    if not choices and not bounds:
        raise UsageError(
            "nothing varies", fix="use --grid learning_rate=1e-4,2e-4   or --range NAME=LOW:HIGH:log"
        )
    for name in (*choices, *bounds):
        if name.partition(".")[0] in _FIXED:
            raise UsageError(
                f"{name} must be the same for all trials, because they are compared with each other"
            )
    return Space(choices, bounds)


def _choice(pair: str) -> tuple[str, tuple[Any, ...]]:
    name, _, text = pair.partition("=")
    values = specfile.parse_settings([f"{name}=[{text}]"], example="--grid learning_rate=1e-4,2e-4")
    found = tuple(_number(value) for value in values[name.strip()])
    if not found or any(value is None for value in found):
        raise UsageError(f"--grid {name} needs comma-separated values, got {text!r}")
    if len(set(map(repr, found))) < len(found):
        raise UsageError(f"--grid {name} has a value twice: {text!r}")
    return name.strip(), found


def _number(value: Any) -> Any:
    """Parse a number. YAML reads `1e-4` as a string, because it requires a decimal point."""
    if not isinstance(value, str):
        return value
    try:
        number = float(value)
    except ValueError:
        return value
    return number if math.isfinite(number) else value


def _range(pair: str) -> tuple[str, Range]:
    name, _, text = pair.partition("=")
    low, _, rest = text.partition(":")
    high, _, scale = rest.partition(":")
    try:
        found = float(low), float(high), scale == "log"
    except ValueError:
        found = math.nan, math.nan, False
    right = math.isfinite(found[0]) and math.isfinite(found[1]) and found[0] < found[1]
    if not name.strip() or not right or scale not in ("", "log") or (found[2] and found[0] <= 0):
        raise UsageError(
            "--range must be NAME=LOW:HIGH or NAME=LOW:HIGH:log, with LOW below HIGH (and above 0 for log), "
            f"got {pair!r}"
        )
    return name.strip(), found


def applied(spec: Mapping[str, Any], settings: Settings, share: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """Return the spec's values with a trial's settings applied. If `share` is below 1, the trial trains on
    that fraction of the rows, sampled with a seed. Raises `UsageError` for an invalid fraction."""
    import copy

    values = copy.deepcopy(dict(spec))
    for name, value in settings.items():
        if name not in (PROVIDER, SHARE):
            specfile.put(values, name, value)
    own = settings.get(SHARE, 1)
    if isinstance(own, str):
        return {**values, "train": own}
    if not isinstance(own, int | float) or not 0 < own <= 1:
        raise UsageError(f"share must be above 0 and at most 1, got {own!r}")
    if share * own < 1:
        files: Any = values["train"]
        each = cast("list[Any]", files) if isinstance(files, list) else [files]
        values["train"] = [_sampled(one, share * own, int(settings.get("seed", seed))) for one in each]
    return values


def takes_part(settings: Settings, share: float = 1.0) -> bool:
    """Return True if a trial trains on only part of the rows. The fraction `share` is multiplied by the
    trial's own."""
    own = settings.get(SHARE, 1)
    return isinstance(own, str) or share * float(own) < 1


def _sampled(file: Any, share: float, seed: int) -> dict[str, Any]:
    given: dict[str, Any] = {"path": file} if isinstance(file, str) else dict(file)
    return {**given, "weight": float(given.get("weight", 1)) * share, "seed": given.get("seed", seed)}
