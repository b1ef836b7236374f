"""What becomes of a run's settings and rows when it is trained elsewhere, one line for each thing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from orchestrate.types import Outcome, Problem, Record, Setting, Severity, Translation

if TYPE_CHECKING:
    from orchestrate.catalog import Model
    from orchestrate.data.facts import Content
    from orchestrate.profile import Profile

_QUIET = ("model", "train", "validation", "test", "tags", "max_cost_usd")
"""Said elsewhere, or ours."""
Becomes = Literal["kept", "changed", "left out", "new"]


class Change(Record, frozen=True, kw_only=True):
    """One setting, or one property of the rows. `was` and `now` are in words, with the host's own field."""

    what: str
    was: str
    now: str
    becomes: Becomes
    why: str = ""


def of_settings(
    before: Translation, after: Translation, refused: Mapping[str, str] | None = None
) -> list[Change]:
    """From the translation to the old backend to that to the new one. `refused`: settings that
    the new backend does not get, and why."""
    old, new = ({s.name: s for s in t.settings} for t in (before, after))
    found: list[Change] = []
    for name in [*old, *(name for name in new if name not in old)]:
        if name.split(".")[0] in _QUIET:
            continue
        was, now = old.get(name), new.get(name)
        if now is None or now.outcome is Outcome.REFUSED:
            if was is not None and was.asked is not None:
                why = (refused or {}).get(name) or (now.rule if now is not None else None)
                why = why or "no such setting there"
                found.append(Change(what=name, was=_value(was), now="-", becomes="left out", why=why))
        elif now.asked is None and (was is None or was.asked is None):
            if was is None or _value(was) != _value(now):
                said = _value(was) if was is not None else "-"
                found.append(
                    Change(what=name, was=said, now=_value(now), becomes="new", why=now.rule or "not asked")
                )
        else:
            same = was is not None and _sent(was) == _sent(now) and now.exact
            found.append(
                Change(
                    what=name,
                    was=_value(was) if was is not None else "-",
                    now=_value(now),
                    becomes="kept" if same else "changed",
                    why=now.rule or "",
                )
            )
    order: Sequence[Becomes] = ("left out", "changed", "kept", "new")
    return sorted(found, key=lambda change: order.index(change.becomes))


def of_rows(
    content: Content, old: tuple[Profile, Model | None], new: tuple[Profile, Model | None]
) -> list[Change]:
    """Template, tokens and roles: what the same rows are to the new model."""
    (host, base), (there, model) = old, new
    found = [
        _changed(
            "chat template",
            _template(base),
            _template(model),
            "rows are written for the new model by its own template",
        )
    ]
    was, now = ((m.tokenizer if m is not None else None) or "not known" for m in (base, model))
    found.append(_changed("tokenizer", was, now, "lengths and prices are counted anew"))
    if {"system", "developer"} & set(content.roles):
        spelled = [p.dialect.developer if p.dialect is not None else "system" for p in (host, there)]
        was, now = ("system" if "developer" not in content.roles else f"system, {role}" for role in spelled)
        found.append(
            _changed("system prompts", was, now, "kept in the rows; ask the new model with the same")
        )
    if content.tools:
        shape = "as the chat completions API has them"
        rule = "the new model writes calls by its own template; the host reads them back"
        found.append(Change(what="tools", was=shape, now=shape, becomes="kept", why=rule))
    return found


def of_problems(problems: Iterable[Problem], provider: str) -> list[Change]:
    """What of the rows the new backend would refuse, leave out or train otherwise, each sort once."""
    sorts: dict[str, list[Problem]] = {}
    for one in problems:
        if one.severity is not Severity.INFO and (not one.providers or provider in one.providers):
            sorts.setdefault(one.code, []).append(one)
    return [
        Change(
            what=f"rows: {code}",
            was=f"row {first.row}" if first.row else "the file",
            now="refused" if first.severity is Severity.ERROR else "as told",
            becomes="left out" if first.severity is Severity.ERROR else "changed",
            why=first.message + (f", and {len(more):,} more such" if more else ""),
        )
        for code, (first, *more) in sorts.items()
    ]


def _value(setting: Setting) -> str:
    """`1.8 as learning_rate_multiplier`: what is sent, else what the host takes."""
    if setting.outcome is Outcome.REFUSED:
        return str(setting.asked)
    value = _sent(setting)
    said = f"{value:g}" if isinstance(value, float) else "the host's own" if value is None else str(value)
    field = setting.wire.rsplit(".", 1)[-1] if setting.wire else ""
    return f"{said} as {field}" if field and field != setting.name.rsplit(".", 1)[-1] else said


def _sent(setting: Setting) -> object:
    """Under whatever name the host has for it."""
    return setting.sent if setting.sent is not None else setting.asked


def _changed(what: str, was: str, now: str, why: str) -> Change:
    same = was == now
    return Change(what=what, was=was, now=now, becomes="kept" if same else "changed", why="" if same else why)


def _template(model: Model | None) -> str:
    if model is not None and model.template:
        return model.template
    if model is not None and not model.open:
        return f"that of {model.name}, not published"
    return "the model's own"
