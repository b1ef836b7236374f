"""Operations on training data files for the configured backends. Functions of other packages are imported on
first use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from orchestrate.core import late
from orchestrate.errors import DataError, OrchestrateError, UsageError
from orchestrate.profile import profile, this_machine
from orchestrate.runs.tracked import tracked
from orchestrate.types import TokensFrom

if TYPE_CHECKING:
    from orchestrate.data.files import beside as beside
    from orchestrate.data.files import is_stdout as is_stdout
    from orchestrate.data.files import require_writable as require_writable
    from orchestrate.data.operations.check import CheckOptions
    from orchestrate.data.operations.check import check as check
    from orchestrate.data.operations.convert import convert as convert
    from orchestrate.data.operations.convert import join_batch as join_batch
    from orchestrate.data.operations.dedupe import dedupe as dedupe
    from orchestrate.data.operations.fix import fix as fix
    from orchestrate.data.operations.inspect import inspect as inspect
    from orchestrate.data.operations.preview import PreviewReport
    from orchestrate.data.operations.preview import heading as heading
    from orchestrate.data.operations.preview import html as html
    from orchestrate.data.operations.review import RowReview as RowReview
    from orchestrate.data.operations.review_server import review_routes as review_routes
    from orchestrate.data.operations.review_server import serving as serving
    from orchestrate.data.operations.split import Division as Division
    from orchestrate.data.operations.split import parse_shares as parse_shares
    from orchestrate.data.operations.split import split as split
    from orchestrate.data.operations.threads import columns_of as columns_of
    from orchestrate.data.operations.threads import join as join
    from orchestrate.data.passes.ray_engine import on_ray as on_ray
    from orchestrate.local.encoding.preview import read_preview as read_preview
    from orchestrate.providers.registry import format_of as format_of
    from orchestrate.settings.config import Settings
    from orchestrate.workspace import Workspace

_PUBLIC = {
    "Division": "data.operations.split",
    "RowReview": "data.operations.review",
    "beside": "data.files",
    "check": "data.operations.check",
    "columns_of": "data.operations.threads",
    "convert": "data.operations.convert",
    "dedupe": "data.operations.dedupe",
    "fix": "data.operations.fix",
    "format_of": "providers.registry",
    "heading": "data.operations.preview",
    "html": "data.operations.preview",
    "inspect": "data.operations.inspect",
    "is_stdout": "data.files",
    "join": "data.operations.threads",
    "join_batch": "data.operations.convert",
    "on_ray": "data.passes.ray_engine",
    "parse_shares": "data.operations.split",
    "read_preview": "local.encoding.preview",
    "require_writable": "data.files",
    "review_routes": "data.operations.review_server",
    "serving": "data.operations.review_server",
    "split": "data.operations.split",
}


__getattr__ = late("orchestrate", _PUBLIC)


def rows_of_run(ft: Workspace, run: str, first: int, count: int) -> PreviewReport:
    """Return the rows of a run as its host's trainer saw them. Raises `UsageError` for an unknown run,
    `Unsupported` if the host does not show rows, and `DataError` if no rows are available yet."""
    from orchestrate.data.operations.preview import PreviewReport

    handle = tracked(ft, run)
    rows = [row for row in handle.rendered() if row.row >= first][:count]
    if not rows:
        raise DataError(
            f"{handle.record.provider} returned no rows of run {handle.id}, starting at row {first}",
            fix="some rows may only be available after the job has ended",
        )
    return PreviewReport(path=f"run {handle.id}", model=handle.record.model, rows=tuple(rows))


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """Options for checking files. `near` turns the search for near-duplicates on or off. By default, the
    search runs if there is more than one file and the required packages are installed."""

    hosts: str = "all"
    model: str | None = None
    tokenizer: str | None = None
    method: str | None = None
    epochs: int | None = None
    near: bool | None = None
    strict: bool = False
    tokens: TokensFrom = TokensFrom.EXACT


def check_options(
    settings: Settings,
    files: Mapping[str, str],
    wanted: FileCheck,
    *,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
) -> tuple[CheckOptions, list[str]]:
    """Return `(options, notes)`: the options for checking the files, and one sentence for each check that
    will be skipped. `files` maps each split to a path. Raises `UsageError` for an unknown backend, method or
    model."""
    from orchestrate.data.operations.check import CheckOptions
    from orchestrate.data.rules import METHOD_KINDS
    from orchestrate.providers import registry

    hosts = registry.targets(settings, wanted.hosts)
    kinds = {host.name: settings.host(host.name).kind for host in hosts}
    if wanted.method not in (None, *METHOD_KINDS):
        raise UsageError(f"unknown method {wanted.method!r}. Known methods: {', '.join(METHOD_KINDS)}")
    contexts, unchecked = _contexts(wanted.model, kinds, wanted.method or "sft")
    near = wanted.near
    if near is None:
        near = len(files) > 1 and all(find_spec(package) for package in ("numpy", "rensa"))
        if len(files) > 1 and not near:
            unchecked.append(
                "near-duplicates across splits were not checked: pip install 'orchestrate-ft[data]'"
            )
    options = CheckOptions(
        hosts=hosts,
        method=wanted.method,
        tokenizer=wanted.tokenizer or counter(wanted.model, kinds.values()),
        contexts=contexts,
        epochs=wanted.epochs,
        near=near,
        columns=columns,
        strict=wanted.strict,
        workers=workers,
        memory=settings.home / "counts",
        tokens_from=wanted.tokens,
    )
    return options, unchecked


def counter(model: str | None, kinds: Iterable[str] = ()) -> str:
    """Return the name of the tokenizer that counts a model's tokens, taken from the first backend that offers
    the model. Backends of the given `kinds` are tried first. If no model is given, returns `o200k`. Raises
    `SpecError` for a model that no backend offers."""
    from orchestrate import catalog
    from orchestrate.data.tokens import counters

    if model is None:
        return "o200k"
    if (known := counters.of_tiktoken(model)) is not None:
        return known
    failed: OrchestrateError | None = None
    asked = tuple(kinds)
    for kind in dict.fromkeys((*asked, this_machine().kind, *sorted(catalog.known_hosts()))):
        try:
            found = catalog.resolve(model, kind)
        except OrchestrateError as error:
            failed = failed or error
            continue
        if found.model is None and kind not in asked and profile(kind).ids is None:
            continue  # it accepts any name, so this proves nothing about the model
        return counters.for_model(tokenizer=found.tokenizer, hub=found.hub, folder=found.folder)
    assert failed is not None  # noqa: S101  the loop ran at least once
    raise failed


def _contexts(model: str | None, kinds: Mapping[str, str], method: str) -> tuple[dict[str, int], list[str]]:
    from orchestrate import catalog

    found: dict[str, int] = {}
    unchecked: list[str] = []
    for host, kind in kinds.items() if model else ():
        try:
            context = catalog.resolve(model or "", kind).context(method)
        except OrchestrateError:
            unchecked.append(f"{host} does not offer {model}, so the length limit of {host} is not checked")
            continue
        if context is not None:
            found[host] = context
    return found, unchecked
