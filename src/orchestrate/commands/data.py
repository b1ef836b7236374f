"""data: inspect, check, convert, split, dedupe, preview, generate and review training data. All but
generate are offline."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrate.commands.console import Json, err, note, out, print_json, settings_of, table
from orchestrate.commands.data_make import generate, review
from orchestrate.commands.data_views import note_rewritten, show_check, show_inspect, show_preview
from orchestrate.commands.options import grouped
from orchestrate.errors import MissingExtra, OrchestrateError, UsageError
from orchestrate.profile import this_machine
from orchestrate.types import Severity

if TYPE_CHECKING:
    from orchestrate.data.rules import Target

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help=__doc__)

FileArg = Annotated[str, typer.Argument(metavar="FILE", help="A file, a dataset folder, a URL, or -.")]
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD=COLUMN", help="Read COLUMN as FIELD; may be repeated or comma-separated."
    ),
]
IgnoreOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--ignore", metavar="COLUMN", help="Do not read COLUMN; may be repeated or comma-separated."
    ),
]
WorkersOpt = Annotated[int | None, typer.Option(min=1, help="Processes; default: one for each core.")]
ModelOpt = Annotated[str | None, typer.Option("--model", help="Count with this model's tokenizer.")]
TokenizerOpt = Annotated[
    str | None, typer.Option(help="o200k, cl100k, harmony, qwen3.5, hf:FOLDER, FAMILY~COUNTER.")
]
EngineOpt = Annotated[
    str, typer.Option("--engine", help="local, or ray: a running cluster, else one on this machine.")
]
OutputOpt = Annotated[Path | None, typer.Option("-o", "--output", help="Where to write.", show_default=False)]

Progress = Callable[[int, int], None]


@app.command()
def inspect(
    file: FileArg,
    model: ModelOpt = None,
    tokenizer: TokenizerOpt = None,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
    workers: WorkersOpt = None,
    json: Json = False,
) -> None:
    """What is in a file: format, tokens, roles, tools, languages, duplicates, and whether it is enough."""
    from orchestrate.data.operations import inspect as inspecting

    name = tokenizer or _tokenizer(model, ())
    with _progress("reading") as progress:
        report = inspecting.inspect(
            file, tokenizer=name, columns=_columns(columns, ignored), workers=workers, progress=progress
        )
    if json:
        print_json(report)
    else:
        show_inspect(report)


@dataclass(frozen=True, kw_only=True)
class OtherFiles:
    """The other files of a training."""

    validation: Annotated[str | None, typer.Option(help="The validation file; checked for leakage.")] = None
    test: Annotated[str | None, typer.Option(help="The test file; checked for leakage.")] = None


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the data are checked for."""

    hosts: Annotated[str, typer.Option("--for", help="Backends, comma-separated.")] = "all"
    model: ModelOpt = None
    tokenizer: TokenizerOpt = None
    method: Annotated[str | None, typer.Option(help="sft, dpo, kto or rft.")] = None
    epochs: Annotated[int | None, typer.Option(min=1)] = None
    near: Annotated[
        bool | None,
        typer.Option(
            "--near/--no-near", help="Nearly equal rows too; default: when there are several files."
        ),
    ] = None
    strict: Annotated[bool, typer.Option("--strict", help="What is not read is an error.")] = False


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the files are read."""

    columns: MapOpt = None
    ignored: IgnoreOpt = None
    workers: WorkersOpt = None
    engine: EngineOpt = "local"


@app.command()
@grouped
def check(
    context: typer.Context,
    file: FileArg,
    *,
    others: OtherFiles,
    wanted: Wanted,
    fix: Annotated[
        bool, typer.Option("--fix", help="Write a repaired copy and a log of each change.")
    ] = False,
    output: OutputOpt = None,
    reading: Reading,
    json: Json = False,
) -> None:
    """All problems in one pass, for every backend. Exit code 1 when there are errors."""
    from orchestrate.data.files.outputs import beside, require_writable
    from orchestrate.data.operations import check as checking
    from orchestrate.data.rules import METHOD_KINDS
    from orchestrate.providers import registry

    settings = settings_of(context)
    hosts = registry.targets(settings, wanted.hosts)
    kinds = {host.name: settings.host(host.name).kind for host in hosts}
    if wanted.method not in (None, *METHOD_KINDS):
        raise UsageError(f"no method {wanted.method!r}; known: {', '.join(METHOD_KINDS)}")
    named = {"train": file, "validation": others.validation, "test": others.test}
    paths = {split: path for split, path in named.items() if path}
    repaired = (output or beside(file, "fixed.jsonl")) if fix else None
    if repaired is not None:
        require_writable(repaired, *paths.values())
    options = checking.Options(
        hosts=hosts,
        method=wanted.method,
        tokenizer=wanted.tokenizer or _tokenizer(wanted.model, kinds.values()),
        contexts=_contexts(wanted.model, kinds, wanted.method or "sft"),
        epochs=wanted.epochs,
        near=_look_near(paths) if wanted.near is None else wanted.near,
        columns=_columns(reading.columns, reading.ignored),
        strict=wanted.strict,
        workers=reading.workers,
    )
    with _engine(reading.engine, reading.workers), _progress("checking") as progress:
        report = checking.check(paths, options, progress=progress)
    fixed = _fix(file, repaired, hosts, options) if repaired else None
    if json:
        print_json({"report": report, "fix": fixed})
    else:
        show_check(report, fixed)
        if not options.near:
            note("near duplicates were not looked for: --near does, in about twice the time")
    if not report.ok:
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True)
class Messages:
    """How rows of one message each become conversations."""

    thread: Annotated[
        str | None,
        typer.Option("--thread", metavar="COLUMN", help="Join rows of one message by this column."),
    ] = None
    role: Annotated[
        str | None, typer.Option("--role", metavar="COLUMN", help="Who says it: a role, a name, an address.")
    ] = None
    assistant: Annotated[
        list[str] | None,
        typer.Option(
            "--assistant", metavar="VALUE", help="Whose messages are answers; * stands for anything."
        ),
    ] = None
    text: Annotated[str | None, typer.Option("--text", metavar="COLUMN", help="What is said.")] = None
    time: Annotated[str | None, typer.Option("--time", metavar="COLUMN", help="When it is said.")] = None


@app.command()
@grouped
def convert(
    context: typer.Context,
    file: FileArg,
    *,
    to: Annotated[
        str,
        typer.Option(
            help="openai, together, fireworks, local, sharegpt, alpaca, trl, gemini, bedrock, parquet, or "
            "unpaired: two rows of each preference pair."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Where to write; packed if it ends in .gz or .zst. - is standard output.",
            show_default=False,
        ),
    ] = None,
    allow_loss: Annotated[
        bool, typer.Option("--allow-loss", help="Write what can be held, and say what is lost.")
    ] = False,
    messages: Messages,
    reading: Reading,
    json: Json = False,
) -> None:
    """Rows in another format: without loss, or not at all unless --allow-loss. Tickets and mails, with one
    message a row, become conversations: --thread, --role, --assistant."""
    from orchestrate.data.files.outputs import beside, is_stdout
    from orchestrate.data.operations import convert as converting
    from orchestrate.providers import registry

    format = registry.format_of(settings_of(context), to)
    ending = "parquet" if to == "parquet" else "jsonl"
    target = output or beside(file, f"{to}.{ending}")
    if json and is_stdout(target):
        raise UsageError("--json and the rows cannot both go to standard output", fix="give a file with -o")
    with (
        _conversations(file, messages) as joined,
        _engine(reading.engine, reading.workers),
        _progress("converting") as progress,
    ):
        report = converting.convert(
            joined,
            format,
            target,
            allow_loss=allow_loss,
            columns=_columns(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    for loss in report.losses:
        note(f"{'lost' if loss.severity is Severity.ERROR else loss.severity}: {loss.message}")
    tell = note if is_stdout(target) else out.print
    tell(f"{report.output}: {report.written:,} rows, {report.left_out:,} left out")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """How the rows are shared out."""

    seed: Annotated[int, typer.Option(min=0)] = 0
    stratify: Annotated[bool, typer.Option("--stratify", help="The same mix of answers in each split.")] = (
        False
    )
    near: Annotated[bool, typer.Option("--near/--no-near", help="Keep near duplicates together.")] = True


@app.command()
@grouped
def split(
    file: FileArg,
    shares: Annotated[
        str, typer.Argument(metavar="[SHARES]", help="Of train, validation and, when there is a third, test.")
    ] = "80/10/10",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder; default: FILE's name.")
    ] = None,
    *,
    sides: Sides,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
    workers: WorkersOpt = None,
    json: Json = False,
) -> None:
    """By content: the same row falls on the same side, also after rows were added. Conversations stay
    whole."""
    from orchestrate.data.files.outputs import beside
    from orchestrate.data.operations import split as splitting

    with _progress("splitting") as progress, _or("--no-near, and nearly equal rows may be on both sides"):
        report = splitting.split(
            file,
            splitting.Division(splitting.parse_shares(shares), sides.seed, sides.near, sides.stratify),
            output or beside(file, "split"),
            columns=_columns(columns, ignored),
            workers=workers,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    shown = table("split", "rows", "share", "file", right=("rows", "share"))
    for part in report.files:
        shown.add_row(part.split, f"{part.rows:,}", f"{part.share:.1%}", part.path)
    out.print(shown)
    note(f"{report.groups:,} groups kept whole; {report.left_out:,} rows with errors left out")
    note_rewritten(report)
    for part in report.files:
        if not part.rows:
            note(f"{part.split} is empty: add rows, give it a larger share, or try another --seed")


@app.command()
@grouped
def dedupe(
    file: FileArg,
    output: OutputOpt = None,
    near: Annotated[bool, typer.Option("--near", help="Nearly equal rows too (MinHash).")] = False,
    threshold: Annotated[float, typer.Option(min=0.5, max=1.0, help="Least similarity of near rows.")] = 0.8,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    *,
    reading: Reading,
    json: Json = False,
) -> None:
    """Keep the first of each set of equal rows, and log the others."""
    from orchestrate.data.files.outputs import beside
    from orchestrate.data.operations import dedupe as deduping

    with _engine(reading.engine, reading.workers), _progress("comparing") as progress:
        report = deduping.dedupe(
            file,
            None if dry_run else output or beside(file, "deduped.jsonl"),
            near_duplicates=near,
            threshold=threshold,
            columns=_columns(reading.columns, reading.ignored),
            workers=reading.workers,
            progress=progress,
        )
    if json:
        print_json(report)
        return
    counts = f"{report.exact:,} equal, {report.near:,} nearly equal"
    out.print(f"{report.rows:,} rows, {report.kept:,} kept: {counts}")
    if report.left_out:
        note(f"{report.left_out:,} rows with errors left out: orchestrate data check {file}")
    if report.output:
        note(f"written: {report.output}; each removed row: {report.log}")
        note_rewritten(report)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Which rows, and how training takes them."""

    row: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1
    rows: Annotated[int, typer.Option(min=1, help="How many.")] = 1
    max_length: Annotated[int | None, typer.Option(min=8, help="Cut as training would.")] = None
    train_on_inputs: Annotated[bool, typer.Option("--train-on-inputs")] = False


@app.command()
@grouped
def preview(
    file: FileArg,
    model: Annotated[
        str, typer.Option("--model", help="A model folder, or a model whose tokenizer is cached.")
    ],
    *,
    shown: Shown,
    html: Annotated[Path | None, typer.Option(help="Write a page instead.")] = None,
    columns: MapOpt = None,
    ignored: IgnoreOpt = None,
    json: Json = False,
) -> None:
    """The tokens of rows as the model sees them, the trained ones marked; the code is the local engine's."""
    from orchestrate.commands.data_preview import read_preview
    from orchestrate.data.operations.preview import html as page

    report = read_preview(
        file,
        model,
        shown.row,
        shown.rows,
        shown.max_length,
        shown.train_on_inputs,
        _columns(columns, ignored),
    )
    if html is not None:
        html.write_text(page(report), encoding="utf-8")
        note(f"written: {html}")
    if json:
        print_json(report)
    elif html is None:
        show_preview(report)


app.command()(generate)
app.command()(review)


@contextmanager
def _conversations(file: str, given: Messages) -> Generator[str]:
    """The file, or the conversations that its messages make. Tells what is left out of them."""
    from orchestrate.data.files.mbox import is_mbox

    mails = is_mbox(file)
    thread, role = given.thread or ("thread" if mails else None), given.role or ("sender" if mails else None)
    if thread is None and role is None and not given.assistant:
        yield file
        return
    if thread is None or role is None or not given.assistant:
        raise UsageError(
            "conversations of messages need to know whose are the answers",
            fix="--thread COLUMN --role COLUMN --assistant VALUE; for an mbox --assistant ADDRESS is enough",
        )
    from orchestrate.data.operations import threads

    columns = threads.Columns(thread, role, tuple(given.assistant), given.text, given.time)
    with TemporaryDirectory() as folder:
        rows = Path(folder) / "conversations.jsonl"
        report = threads.join(file, columns, rows)
        note(f"{report.messages:,} messages, {report.threads:,} threads, {report.written:,} conversations")
        for what, text in _THREADS.items():
            if count := getattr(report, what):
                shown = ", ".join(report.shown.get(what, ()))
                note(f"{count:,} {text}{f': {shown}' if shown else ''}")
        yield str(rows)


_THREADS = {
    "open": "threads without an answer are left out",
    "unanswered_ends": "are written without what was said after the last answer",
    "unasked": "begin with an answer, which is left out",
    "several_agents": "have answers of more than one agent, and teach the styles of all",
    "empty": "messages hold nothing but quotes or a signature",
}


def _look_near(paths: Mapping[str, str]) -> bool:
    """Leakage is worth the time, where the packages are there."""
    if len(paths) < 2:
        return False
    if all(find_spec(package) for package in ("numpy", "rensa")):
        return True
    note("leakage of nearly equal rows is not looked for: pip install 'orchestrate-ft[data]'")
    return False


def _fix(file: str, output: Path, hosts: Sequence[Target], options: object) -> object:
    from orchestrate.data.operations import check as checking
    from orchestrate.data.operations import fix as fixing

    assert isinstance(options, checking.Options)  # noqa: S101
    return fixing.fix(file, output, hosts=hosts, columns=options.columns)


def _columns(given: Sequence[str] | None, ignored: Sequence[str] | None = None) -> dict[str, str]:
    """A field of no column is not read."""
    pairs = [pair.partition("=") for item in given or () for pair in item.split(",")]
    if any(not (wanted and column) for wanted, _, column in pairs):
        raise UsageError("--map takes FIELD=COLUMN, for example --map prompt=question,completion=answer")
    left_out = {name.strip(): "" for item in ignored or () for name in item.split(",") if name.strip()}
    return left_out | {wanted.strip(): column.strip() for wanted, _, column in pairs}


def _tokenizer(model: str | None, kinds: Iterable[str]) -> str:
    """The counter of a model, by the first backend that has it, these kinds before all others; o200k when no
    model is named."""
    from orchestrate import catalog
    from orchestrate.data.tokens import counting

    if model is None:
        return "o200k"
    if (counter := counting.of_tiktoken(model)) is not None:
        return counter
    failed: OrchestrateError | None = None
    for kind in dict.fromkeys((*kinds, this_machine().kind, *sorted(catalog.known_hosts()))):
        try:
            found = catalog.resolve(model, kind)
        except OrchestrateError as error:
            failed = failed or error
            continue
        return counting.for_model(tokenizer=found.tokenizer, hub=found.hub, folder=found.folder)
    assert failed is not None  # noqa: S101  the loop ran at least once
    raise failed


def _contexts(model: str | None, hosts: Mapping[str, str], method: str) -> dict[str, int]:
    from orchestrate import catalog

    found: dict[str, int] = {}
    for host, kind in hosts.items() if model else ():
        try:
            context = catalog.resolve(model or "", kind).context(method)
        except OrchestrateError:
            note(f"{host} does not offer {model}: its length limit is not checked")
            continue
        if context is not None:
            found[host] = context
    return found


@contextmanager
def _engine(name: str, workers: int | None) -> Generator[None]:
    if name not in ("local", "ray"):
        raise UsageError(f"no engine {name!r}; known: local, ray")
    if name == "local":
        yield
        return
    from orchestrate.data.passes.ray_engine import on_ray

    with redirect_stdout(sys.stderr), on_ray(workers) as cpus:  # Ray prints what befalls its workers
        note(f"on Ray, {cpus} CPUs")
        yield


@contextmanager
def _or(option: str) -> Generator[None]:
    """Tells the option that does without a missing package."""
    try:
        yield
    except MissingExtra as error:
        error.fix = f"{error.fix}, or {option}"
        raise


@contextmanager
def _progress(what: str) -> Generator[Progress]:
    """A bar with rate and time left, on a terminal only."""
    from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        "{task.description}",
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
