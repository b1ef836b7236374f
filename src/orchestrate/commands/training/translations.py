"""Terminal output of `plan`: what each setting becomes on each backend, and the memory that training
takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from orchestrate.commands.terminal.console import note, out, table
from orchestrate.core.tables import TextTable
from orchestrate.settings import hide
from orchestrate.text import count, joined, rates_apart, size
from orchestrate.types import Authority, MemoryPlan, Outcome, Setting, Translation

_STYLE = {Outcome.KEPT: "", Outcome.MAPPED: "cyan", Outcome.DEFAULTED: "dim", Outcome.REFUSED: "red"}
_LEAST = 8
_LENGTHS = range(40, _LEAST - 1, -2)
"""Maximum length of a value in the table, in characters. The lengths are tried in this order until all
backends fit side by side."""


def show_translations(translations: Sequence[Translation], *, all: bool = False) -> None:
    """Print one line per setting with one column per backend, then explanations of values that differ from
    the spec, and finally rejected settings. Without `all`, hides settings that the spec does not set, unless
    the backends' own values differ."""
    every = {t.provider: {s.name: s for s in t.settings} for t in translations}
    # If a backend rejects the model, its other settings are unknown, so it gets no column.
    without = [name for name, found in every.items() if _refused(found.get("model"))]
    rows = {name: found for name, found in every.items() if name not in without}
    names = [n for n in dict.fromkeys(name for found in rows.values() for name in found) if n != "model"]
    shown = [name for name in names if all or _matters([of.get(name) for of in rows.values()])]
    plain = [] if all else [name for name in shown if _plain([of.get(name) for of in rows.values()])]
    for t in translations:
        model = ("refused", "red") if t.provider in without else t.model
        out.print(Text.assemble((t.provider, "bold"), "  ", model))
    out.print()
    if differing := [name for name in shown if name not in plain]:
        matrices = (_matrix(differing, rows, length) for length in _LENGTHS)
        out.print(next((m for m in matrices if m.fits(out.width)), _matrix(differing, rows, _LEAST)))
    if plain:
        note(f"applied unchanged on all backends: {', '.join(plain)}")
    note("~: not applied exactly as set; (...): the backend's default")
    _explain(["model"], {name: every[name] for name in without}, all=all)
    _explain(shown, rows, all=all)
    if apart := rates_apart({t.provider: t.multiplied_rate for t in translations}):
        out.print(Text(apart, "yellow"))
    for t in translations:
        _rest(t)
    if hidden := len(names) - len(shown):
        note(f"{count(hidden, 'setting')} not shown, because you did not set them. To show all: --all")
    _verdict(translations)


def _refused(setting: Setting | None) -> bool:
    return setting is not None and setting.outcome is Outcome.REFUSED


def _plain(found: Sequence[Setting | None]) -> bool:
    return all(
        s is not None and s.outcome is Outcome.KEPT and s.exact and (s.sent is None or s.sent == s.asked)
        for s in found
    )


def _matters(found: Sequence[Setting | None]) -> bool:
    """Return true for a setting that the user set, or whose values on the backends are known to differ."""
    if any(s is not None and s.outcome is not Outcome.DEFAULTED for s in found):
        return True
    own = {str(s.sent) for s in found if s is not None and s.sent is not None}
    return len(own) > 1


def _matrix(names: Sequence[str], rows: Mapping[str, Mapping[str, Setting]], length: int) -> TextTable:
    made = table("setting", "spec", *rows, fold=("spec", *rows))
    for name in names:
        found = [of.get(name) for of in rows.values()]
        asked = next((s.asked for s in found if s is not None and s.asked is not None), None)
        made.add_row(name, _short(asked, length), *(_cell(s, length) for s in found))
    return made


def _cell(setting: Setting | None, length: int) -> Text:
    if setting is None:
        return Text("-", "dim")
    style = _STYLE[setting.outcome]
    if setting.outcome is Outcome.REFUSED:
        return Text("refused", style)
    value = _short(setting.asked if setting.sent is None else setting.sent, length)
    if setting.outcome is Outcome.DEFAULTED:
        return Text(f"({value})" if value else "(its own)", style)
    return Text(value if setting.exact else f"~ {value}", style if setting.exact else "yellow")


def _short(value: Any, length: int) -> str:
    """Shorten a value: paths at the start, longer texts at the end, numbers never."""
    shown = "" if value is None else " ".join(str(value).split())
    if "/" in shown and " " not in shown:
        shown = shown.rsplit("/", 1)[1] or shown
    whole = len(shown) <= length or isinstance(value, int | float)
    return shown if whole else f"{shown[: length - 3]}..."


def _explain(shown: Sequence[str], rows: Mapping[str, Mapping[str, Setting]], *, all: bool) -> None:
    """Show each reason once, with all backends it applies to."""
    for name in shown:
        reasons: dict[str, list[str]] = {}
        for provider, found in rows.items():
            setting = found.get(name)
            if setting is not None and (text := _reason(setting, all=all)):
                reasons.setdefault(text, []).append(provider)
        for text, providers in reasons.items():
            out.print(Text.assemble((name, "bold"), f" on {joined(providers)}: ", hide(text)))


def _reason(setting: Setting, *, all: bool) -> str:
    notable = setting.outcome in (Outcome.MAPPED, Outcome.REFUSED) or not setting.exact
    unsure = setting.authority not in (None, Authority.SDK)
    if not (notable or all or unsure):
        return ""
    parts = list(_parts(setting, all=all or unsure))
    return "; ".join(parts)


def _parts(setting: Setting, *, all: bool) -> Iterator[str]:
    if setting.outcome is Outcome.REFUSED:
        yield "refused"
    elif setting.sent is not None and setting.sent != setting.asked and len(str(setting.sent)) > _LEAST:
        yield _value(setting.sent)
    if setting.rule:
        yield setting.rule
    if setting.wire and (all or not setting.rule):
        known = setting.authority in (None, Authority.SDK)
        yield f"sent as {setting.wire}" + ("" if known else f" (known from: {setting.authority})")


def _rest(translation: Translation) -> None:
    """Show the spec lines that would make the backend accept the run, and the memory plan."""
    if translation.overrides is not None:
        from orchestrate.spec import specfile

        note(f"with these lines, the spec runs on {translation.provider} (--fix writes them):")
        out.print(hide(specfile.overrides_block(translation.provider, translation.overrides)), style="cyan")
    if translation.memory is not None:
        show_memory(translation.memory, of=translation.provider)


def _verdict(translations: Sequence[Translation]) -> None:
    refused = [f"{s.name} on {t.provider}" for t in translations for s in t.refused]
    others = [(t, s) for t in translations for s in t.inexact if s.outcome is not Outcome.REFUSED]
    inexact = [f"{s.name} on {t.provider}" for t, s in others]
    if inexact:
        out.print(Text(f"{len(inexact)} inexact (rejected with --strict): {joined(inexact)}", "yellow"))
    line = f"{len(refused)} refused: {joined(refused)}" if refused else "nothing is refused"
    out.print(Text(line, "red" if refused else "green"))


def show_memory(plan: MemoryPlan, *, of: str = "") -> None:
    """Print the total memory, its components, and what to change if it does not fit."""
    whose = Text.assemble((of, "bold"), ": ") if of else Text()
    device = "GPU" if plan.device == "cuda" else "CPU"
    whole = f"{size(plan.total_bytes)} of {device} memory"
    at = f" for a batch of {count(plan.rows, 'row')} with up to {count(plan.longest, 'token')} each"
    if plan.available_bytes is None:
        verdict = ("", "")
    elif plan.fits:
        verdict = (f": fits in the available {size(plan.available_bytes)}", "green")
    else:
        verdict = (f": does not fit in the available {size(plan.available_bytes)}", "red")
    out.print(Text.assemble(whose, (whole, "bold"), at, verdict))
    parts = [f"{name} {size(part)}" for name, part in plan.parts.items() if part >= 2**20]
    out.print(Text("  " + " + ".join(parts) + f"; the peak is at {plan.peak}", "dim"))
    for line in plan.advice:
        note(f"  try: {line}")
    for line in plan.notes:
        note(f"  ({line})")


def _value(value: Any) -> str:
    shown = str(value)
    # Shorten long values, such as chat templates.
    return f"{shown.strip()[:40]}... ({len(shown):,} characters)" if len(shown) > 300 else shown
