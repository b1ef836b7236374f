"""Specs that are prepared once for each backend, shown to the user, and then passed to `submit`."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate import text
from orchestrate.core.files import Mark, mark
from orchestrate.errors import (
    DataError,
    MissingExtra,
    OrchestrateError,
    SpecError,
    TranslationRefused,
    UsageError,
)
from orchestrate.settings.config import OWN_HOSTS, Settings
from orchestrate.types import (
    Feature,
    JobStatus,
    Listing,
    Outcome,
    Problem,
    Quote,
    Setting,
    Severity,
    TokensFrom,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.catalog import ModelOnHost
    from orchestrate.data import TrainingData
    from orchestrate.data.dataset_reader import OpenedFile
    from orchestrate.providers.base import Provider
    from orchestrate.spec import JobSpec, TrainFile
    from orchestrate.workspace import Backends, Workspace

UNCOUNTED = "tokens were not counted"
"""Reason shown instead of a price if the user skipped token counting. A spec prepared this way can't be
submitted."""


@dataclass(frozen=True)
class Offer:
    """One backend's part of a prepared spec. `spec` is the version of the spec for this backend."""

    provider: str
    spec: JobSpec
    translation: Translation
    problems: tuple[Problem, ...]
    """Reasons why this backend would reject the job, and file problems that apply to every backend."""
    quote: Quote

    def require_fit(self, *, strict: bool = False) -> None:
        """Raise `TranslationRefused` if the backend would reject a setting, and `DataError` if the files
        contain an error. With `strict`, also raises `TranslationRefused` for a setting that would not be
        applied exactly."""
        refused = self.translation.inexact if strict else self.translation.refused
        if refused:
            from orchestrate.spec import specfile

            fields = self.translation.overrides
            lines = None if fields is None else specfile.overrides_block(self.provider, fields)
            raise TranslationRefused(self.provider, refused, overrides=lines)
        if errors := [p for p in self.problems if p.severity is Severity.ERROR]:
            raise DataError(
                f"{self.provider} would reject this: {text.count(len(errors), 'error')}",
                problems=errors,
                fix=f"orchestrate check --provider {self.provider}",
            )


@dataclass(frozen=True)
class Prepared:
    """A spec that is translated, checked and quoted for some backends, with each file read once. Nothing has
    been sent yet."""

    offers: tuple[Offer, ...]
    data: TrainingData = field(repr=False)
    of_files: tuple[Problem, ...] = field(repr=False)
    """File problems that apply to every backend."""
    marks: Mapping[str, Mark | None] = field(repr=False)
    """Fingerprint of each local file, taken when the file was read."""
    checked: bool
    """True if everything that `submit` needs was checked. False if only quotes were prepared, which skips
    some checks."""

    @property
    def problems(self) -> Listing[Problem]:
        """All problems, each listed once with the affected backends."""
        return Listing(merged([*self.of_files, *(p for offer in self.offers for p in offer.problems)]))

    @property
    def quotes(self) -> Listing[Quote]:
        """Quotes, cheapest first. Jobs that would be rejected and quotes without a price come last."""
        return Listing(sorted((offer.quote for offer in self.offers), key=lambda quote: quote.rank))

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.quotes_and_problems(self.quotes, self.problems)

    def offer(self, provider: str) -> Offer:
        """Return the offer of one backend. Raises `UsageError` for a backend that was not prepared."""
        for offer in self.offers:
            if offer.provider == provider:
                return offer
        raise UsageError(f"the spec was not prepared for {provider}")

    def require_unchanged(self) -> None:
        """Raise `DataError` if the rows of a file have changed since the user saw them. Only files that were
        modified since then are read again. Changes after this check are detected by the upload
        (`Dataset.write`)."""
        from orchestrate.data import Dataset

        for shown in (self.data.train, self.data.validation):
            if shown is None or self.marks.get(shown.path) == mark(shown.path):
                continue
            if Dataset.open(shown.path, columns=dict(shown.columns)).digest != shown.digest:
                raise DataError(
                    f"{shown.path} changed after it was checked and quoted. Nothing was sent",
                    fix="submit again to see the new price",
                )


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Merge problems that several backends have in common. Each merged problem names all affected
    backends."""
    by_place: dict[tuple[object, ...], Problem] = {}
    for problem in problems:
        key = (problem.code, problem.row, problem.field, problem.message, problem.source, problem.fix)
        seen = by_place.setdefault(key, problem)
        if seen is not problem:
            everywhere = not seen.providers or not problem.providers
            names = () if everywhere else tuple(dict.fromkeys((*seen.providers, *problem.providers)))
            by_place[key] = Problem.from_dict(seen.to_dict() | {"providers": names})
    return list(by_place.values())


@dataclass(frozen=True)
class PrepareOptions:
    """Options for preparing specs."""

    gpu_hours: Decimal | None = None
    """GPU hours to assume when quoting an RFT job, because no host publishes them in advance."""
    checked: bool = True
    tokens_from: TokensFrom = TokensFrom.EXACT


def _counted_by(given: str) -> TokensFrom:
    """Parse the option that selects how tokens are counted. Raises `UsageError` for an unknown value."""
    try:
        return TokensFrom(given)
    except ValueError:
        raise UsageError(f"tokens must be one of {', '.join(TokensFrom)} (got {given!r})") from None


def require_known(ws: Workspace, spec: JobSpec) -> None:
    """Raise `SpecError` if the spec has a section for an unknown backend."""
    from orchestrate.providers import registry
    from orchestrate.spec import specfile

    specfile.require_backends(spec, registry.known(ws.settings))


def require(ws: Workspace, spec: JobSpec, provider: Backends) -> None:
    """Raise an error unless every backend is ready and supports the spec's method. See
    `Orchestrator.require`."""
    from orchestrate.providers import base
    from orchestrate.spec import method_word

    require_known(ws, spec)
    for name in ws.backends(provider):
        base.require(ws.provider(name), Feature(method_word(spec.on(name).method)))
        ws.ready(name)


def training_data(ws: Workspace, spec: JobSpec, provider: Backends = ()) -> TrainingData:
    """Read a spec's training data. See `Orchestrator.data`."""
    names = ws.backends(provider) if provider else []
    tokenizers = _tokenizers(ws.settings, {name: spec.on(name) for name in names})
    return _trained_on(_open(spec, tokenizers, ws.settings, checked=False))


def plan(
    ws: Workspace, spec: JobSpec, provider: Backends = "all", *, measured: bool = False
) -> Listing[Translation]:
    """Translate a spec to each backend. See `Orchestrator.plan`."""
    from orchestrate.providers.base import PlansTraining, capability

    require_known(ws, spec)
    found = Listing[Translation]()
    for name in ws.backends(provider):
        own, translation = translated(ws, ws.provider(name), spec)
        if measured and translation.memory is not None:
            with suppress(DataError):
                able = capability(ws.provider(name), PlansTraining)
                memory = able.memory(own, training_data(ws, spec, name), translation)
                translation = replace(translation, memory=memory)
        found.append(translation)
    return found


def prepare(
    ws: Workspace,
    spec: JobSpec,
    provider: Backends = "all",
    *,
    gpu_hours: Decimal | None = None,
    checked: bool = True,
    tokens: str = "exact",
) -> Prepared:
    """Check and quote a spec before it is submitted. See `Orchestrator.prepare`. With a single backend,
    missing requirements raise `MissingExtra` or `UsageError`. With several, they are listed among the
    problems."""
    from orchestrate.spec.specfile import with_template

    require_known(ws, spec)
    backends = [ws.provider(name) for name in ws.backends(provider)]
    terms = PrepareOptions(gpu_hours, checked, _counted_by(tokens))
    alone = len(backends) == 1
    spec = with_template(spec)
    own = {backend.name: translated(ws, backend, spec, alone=alone) for backend in backends}
    tokenizers = _tokenizers(ws.settings, {name: mine for name, (mine, _) in own.items()})
    named = (spec.train, spec.validation, spec.test if checked else None)
    marks = {path: mark(path) for path in named if isinstance(path, str)}
    counted = tokenizers if terms.tokens_from is TokensFrom.EXACT else ()
    with _in_terms_of_a_spec():
        opened = _open(spec, counted, ws.settings, checked=checked)
    if (mix := opened["train"].mix) is not None:
        marks[mix.facts.path] = mark(mix.facts.path)
    of_files = _of_files(opened, checked=checked)
    data = _trained_on(opened, terms.tokens_from)
    offers = [
        _offer(ws, backend, *own[backend.name], data, of_files, terms, alone=alone) for backend in backends
    ]
    return Prepared(tuple(offers), data, tuple(of_files), marks, checked)


def _of_files(opened: Mapping[str, OpenedFile], *, checked: bool) -> list[Problem]:
    """List all problems of the files. A quote, which checks less, gets only the errors that would stop a
    submit."""
    from orchestrate.data.operations.check import problems_of_files

    found = [replace(p, fix=_of_spec(p.fix, p.source)) for p in problems_of_files(opened)]
    return found if checked else [problem for problem in found if problem.severity is Severity.ERROR]


_MAPPED = re.compile(r"--map (?:'([^']+)'|(\S+=[^\s:;]+))")
_IGNORED = re.compile(r"--ignore (?:'([^']+)'|([^\s,;]+(?:,[^\s,;]+)*))")


def _of_spec(fix: str | None, source: str | None = None) -> str | None:
    """Translate a fix of the data commands into what the user of a spec can do."""
    if fix is None:
        return None
    fix = _MAPPED.sub(lambda m: f"columns: {{{(m[1] or m[2]).replace('=', ': ').replace(',', ', ')}}}", fix)
    fix = _IGNORED.sub(lambda m: f"columns: {{{(m[1] or m[2]).replace(',', ': null, ')}: null}}", fix)
    if source and "--fix" in fix and "orchestrate" not in fix:
        fix = fix.replace("--fix", f"orchestrate data check {shlex.quote(source)} --fix")
    return fix


@contextmanager
def _in_terms_of_a_spec() -> Generator[None]:
    try:
        yield
    except OrchestrateError as error:
        error.message = _of_spec(error.message) or ""
        error.fix = _of_spec(error.fix)
        raise


def translated(
    ws: Workspace, provider: Provider, spec: JobSpec, *, alone: bool = False
) -> tuple[JobSpec, Translation]:
    """Translate the spec for a backend. For a spec that the backend cannot run, returns a translation that is
    marked as refused."""
    from orchestrate.providers.settings import overrides

    name = provider.name
    own = spec
    try:
        own = spec.on(name)
        own = _continued(ws, own, name)
        found = provider.translate(own)
        found = replace(found, overrides=overrides(own, found, provider.translate))
        return own, _kept_private(provider, own, found)
    except SpecError as error:
        return own, _refusal(name, "model", spec.model, error)
    except UsageError as error:
        if alone:
            raise
        return own, _refusal(name, "continue_from", own.continue_from, error)


def _continued(ws: Workspace, spec: JobSpec, provider: str) -> JobSpec:
    """Replace a run of this store in `continue_from` by its tuned model, which the backend receives."""
    if spec.continue_from is None or not ws.store.runs.exists(spec.continue_from):
        return spec
    earlier = ws.record(spec.continue_from)
    if earlier.provider != provider:
        raise UsageError(
            f"run {earlier.id} was trained on {earlier.provider}, so {provider} cannot continue from it",
            fix=f"submit to {earlier.provider}, or use a model that {provider} supports",
        )
    if earlier.status is not JobStatus.SUCCEEDED:
        raise UsageError(f"run {earlier.id} is {earlier.status}, but only a finished run can be continued")
    return spec.model_copy(update={"continue_from": earlier.tuned_model or earlier.job_id})


def _open(
    spec: JobSpec, tokenizers: Sequence[str], settings: Settings, *, checked: bool
) -> dict[str, OpenedFile]:
    """Open the files by split. A file that is used for two splits is read once. With `checked`, also examines
    the texts and the test rows. Always compares the rows of training and validation files."""
    from orchestrate.data import dataset_reader
    from orchestrate.data.operations.mix import open_mix

    memory, columns = settings.home / "counts", spec.renaming
    splits = {"train": spec.train, "validation": spec.validation, "test": spec.test if checked else None}
    compare = checked or spec.validation is not None
    opened: dict[str | tuple[TrainFile, ...], OpenedFile] = {}
    for split, given in splits.items():
        if given is None or given in opened:
            continue
        counted = tokenizers if split != "test" else ()
        if isinstance(given, str):
            opened[given] = dataset_reader.open_counted(
                given,
                columns=dataset_reader.applicable_columns(given, columns),
                tokenizers=counted,
                memory=memory,
                compare=compare,
                content=checked,
            )
        else:
            folder = settings.home / "mixes"
            opened[given] = open_mix(
                given,
                folder,
                columns=columns,
                tokenizers=counted,
                memory=memory,
                compare=compare,
                content=checked,
            )
    return {split: opened[given] for split, given in splits.items() if given is not None}


def _trained_on(opened: Mapping[str, OpenedFile], tokens_from: TokensFrom = TokensFrom.EXACT) -> TrainingData:
    from orchestrate.data import Dataset, TrainingData

    train, validation = opened["train"], opened.get("validation")
    files = [Dataset.of(one) for one in (train.mix or train, validation) if one is not None]
    counted = [dataclasses.replace(file, tokens_from=tokens_from) for file in files]
    return TrainingData(counted[0], counted[1] if validation else None, train.mixed)


def _offer(
    ws: Workspace,
    provider: Provider,
    spec: JobSpec,
    translation: Translation,
    data: TrainingData,
    of_files: Iterable[Problem],
    terms: PrepareOptions,
    *,
    alone: bool,
) -> Offer:
    from orchestrate.costing import size

    name, model = provider.name, _resolved(provider, spec)
    problems: list[Problem] = []
    try:
        if not translation.model and translation.refused:
            raise SpecError(str(translation.refused[0].rule))
        problems = provider.check(spec, data, translation)
        problems += _of_model(provider, model, {problem.message for problem in problems})
        if terms.tokens_from is TokensFrom.NONE:
            quote = Quote(provider=name, model=translation.model, unavailable=UNCOUNTED)
        else:
            quote = provider.quote(spec, data, translation, ws.rates, gpu_hours=terms.gpu_hours)
    except SpecError as error:
        problems.append(_problem("no-model", name, error))
        quote = Quote(provider=name, model="", unavailable=error.message)
    except MissingExtra as error:
        if alone:
            raise
        problems.append(_problem("missing-extra", name, error))
        reason = f"{error.message}: {error.fix}"
        quote = Quote(provider=name, model=spec.model_for(name), unavailable=reason)
    found = tuple(merged([*of_files, *problems]))
    quote = replace(
        quote,
        refused=_why_refused(found),
        unlisted=_unlisted(provider, model),
        served=_served(ws, provider, model),
        rows=data.train.rows,
        epochs=size.epochs_of(translation, provider.profile, data.train.rows),
        batch_size=size.batch_of(translation),
        tokens_from=_counted_from(provider, spec, data, terms.tokens_from),
        sandbox=provider.config.sandbox,
    )
    return Offer(name, spec, translation, found, quote)


def _counted_from(provider: Provider, spec: JobSpec, data: TrainingData, wanted: TokensFrom) -> TokensFrom:
    """Return how tokens are counted. Small files and files that were counted before are not sampled."""
    from orchestrate.costing import size

    if wanted is not TokensFrom.SAMPLED:
        return wanted
    try:
        name = size.tokenizer_for(provider.resolve(spec), spec)
        files = [file for file in (data.train, data.validation) if file is not None]
        found = {file.tokens(name).tokens_from for file in files}
    except (SpecError, MissingExtra):
        return wanted
    return wanted if wanted in found else TokensFrom.EXACT


def _resolved(provider: Provider, spec: JobSpec) -> ModelOnHost | None:
    """Return the model on this backend, or `None` if it is not available there, which is listed as a
    problem."""
    try:
        return provider.resolve(spec)
    except SpecError:
        return None


def _unlisted(provider: Provider, model: ModelOnHost | None) -> str | None:
    """Describe that a host with a known list of models is not known to tune this one."""
    from orchestrate import catalog

    kind = provider.profile.kind
    if model is None or provider.name != kind or kind not in catalog.known_hosts():
        return None
    return None if model.host else f"{provider.name} has not confirmed that it can fine-tune {model.id}"


def _of_model(provider: Provider, model: ModelOnHost | None, known: set[str]) -> list[Problem]:
    """List the warnings about the model that are not in `known`."""
    return [
        Problem(
            code="model", message=text, severity=Severity.WARNING, field="model", providers=(provider.name,)
        )
        for text in (model.warnings if model is not None else ())
        if text not in known
    ]


def _served(ws: Workspace, provider: Provider, model: ModelOnHost | None) -> str | None:
    """Describe how the backend serves a tuned model. Returns `None` if that is unknown."""
    from orchestrate import costing
    from orchestrate.providers.base import Downloads, prices_of

    if model is None:
        return None
    prices = costing.Prices(prices_of(provider), ws.rates)
    return costing.served_as(provider.profile, model, prices, portable=isinstance(provider, Downloads))


def _why_refused(problems: Sequence[Problem]) -> str | None:
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if not errors:
        return None
    first = errors[0]
    place = ", ".join(filter(None, (first.source, f"row {first.row}" if first.row else "")))
    message = f"{place}: {first.message}" if place else first.message
    return message if len(errors) == 1 else f"{message}, and {text.count(len(errors) - 1, 'other error')}"


def _tokenizers(settings: Settings, specs: Mapping[str, JobSpec]) -> list[str]:
    """Return the names of the tokenizers with which the backends count, as far as the models are known."""
    from orchestrate import catalog, costing

    found: dict[str, None] = {}
    for name, spec in specs.items():
        try:
            model = catalog.resolve(spec.model_for(name), settings.host(name).kind)
            found[costing.tokenizer_for(model, spec)] = None
        except (SpecError, MissingExtra):
            continue  # the problem is reported for that backend, and the others can still be counted
    return list(found)


def _kept_private(provider: Provider, spec: JobSpec, found: Translation) -> Translation:
    """Refuse the translation if a private spec would leave the user's own machines."""
    if not spec.private or provider.own:
        return found
    rule = (
        f"private runs stay on your own machines, and {provider.profile.title} is not known to be yours. If "
        f"it is: export {OWN_HOSTS}={provider.name}"
    )
    row = Setting(name="private", asked=True, outcome=Outcome.REFUSED, rule=rule)
    kept = [one for one in found.settings if one.name != "private"]
    return replace(found, settings=(*kept, row), overrides=None)


def _refusal(provider: str, name: str, asked: object, error: UsageError) -> Translation:
    row = Setting(name=name, asked=asked, outcome=Outcome.REFUSED, rule=error.message)
    return Translation(provider=provider, model="", settings=(row,), body={})


def _problem(code: str, provider: str, error: SpecError | MissingExtra) -> Problem:
    return Problem(
        code=code, message=error.message, severity=Severity.ERROR, providers=(provider,), fix=error.fix
    )
