"""The command `schema`. Derives the JSON schema of a command's `--json` output from its return type."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin

import msgspec
import typer

from orchestrate.commands import COMMANDS, load
from orchestrate.commands.terminal.command import HostOutput, Output
from orchestrate.commands.terminal.console import ErrorLine, note, print_json, print_text
from orchestrate.commands.terminal.options import synonyms_of
from orchestrate.errors import UsageError
from orchestrate.text import meant

_ERROR = "error"
"""Name of the error record, which every command writes to stderr on failure. Not a command."""

_SANDBOX = {"description": "True if the host is a sandbox, which bills nothing.", "type": "boolean"}
"""Field that `HostOutput` adds to a record."""


def names() -> list[str]:
    """List all commands that have a schema, as typed on the command line."""
    return [*(name for _, top, target, _ in COMMANDS for name in _bodies(top, target)), _ERROR]


def of(command: str) -> dict[str, Any]:
    """Return the JSON schema of a command's output. Raises `UsageError` for a command without `--json`."""
    group, _, word = command.rpartition(" ")
    # Also try the default command of a group, and synonyms of the command's name.
    tried = (command, f"{command} list", *(f"{group} {other}".strip() for other in synonyms_of(word)))
    named = next((name for name in tried if name == _ERROR or _body(name)), None)
    if named is None:
        raise UsageError(
            f"unknown schema {command!r}{meant(command, names())}",
            fix="to list all schemas: orchestrate schema",
        )
    body = _body(named)
    found, parts = _of_records(ErrorLine) if body is None else _of_body(body)
    schema = found[0] if len(found) == 1 else {"anyOf": list(found)}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"orchestrate {named} --json",
        **schema,
        "$defs": parts,
    }


def _body(command: str) -> Callable[..., Any] | None:
    top = command.partition(" ")[0]
    target = next((target for _, name, target, _ in COMMANDS if name == top), None)
    return None if target is None else _bodies(top, target).get(command)


def _of_body(body: Callable[..., Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    """Return the schemas of a command's outputs (several if options choose among them) and of their parts."""
    while True:
        try:
            annotation = eval(body.__annotations__["return"], body.__globals__)  # noqa: S307  written here
            return _of_outputs(list(_printed(annotation)))
        except NameError as missing:
            _import_late(sys.modules[body.__module__], str(missing.name))


def _of_outputs(outputs: list[Any]) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    found, parts = _of_records(*(record for output in outputs for record in get_args(output)))
    for output, schema in zip(outputs, found, strict=True):
        if get_origin(output) is HostOutput:
            name = schema.get("items", schema)["$ref"].rpartition("/")[2]
            parts[name]["properties"]["sandbox"] = _SANDBOX
    return found, parts


def _of_records(*records: Any) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    return msgspec.json.schema_components(records, ref_template="#/$defs/{name}")


def _bodies(name: str, target: str) -> dict[str, Callable[..., Any]]:
    """Map the names of a command and its subcommands to their functions that have `--json`."""
    return dict(_inside(name, load(target)))


def _inside(name: str, found: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    if not isinstance(found, typer.Typer):
        if "json" in getattr(found, "__annotations__", ()):
            yield name, found.body
        return
    if found.registered_callback is not None:
        yield from _inside(name, found.registered_callback.callback)
    for one in found.registered_commands:
        own: Any = one.callback
        yield from _inside(f"{name} {one.name or own.__name__.replace('_', '-')}", own)
    for group in found.registered_groups:
        yield from _inside(f"{name} {group.name}", group.typer_instance)


def _printed(annotation: Any) -> Iterator[Any]:
    """Return each `Output` in an annotation."""
    if get_origin(annotation) in (Output, HostOutput):
        yield annotation
    else:
        for part in get_args(annotation):
            yield from _printed(part)


def _import_late(module: ModuleType, name: str) -> None:
    """Import a name that the module only imports for type checking."""
    for line in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(line, ast.ImportFrom) and line.module:
            for one in line.names:
                if name == (one.asname or one.name):
                    vars(module)[name] = getattr(import_module(line.module), one.name)
                    return
    raise LookupError(f"{module.__name__} does not import {name}")


def schema(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            help="Command, such as show or data check, or `error` for the error record. Default: list all."
        ),
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="Print all schemas as one JSON object, keyed by command.")
    ] = False,
) -> None:
    """Print the JSON schema of a command's --json output."""
    if command or all:
        print_json(of(" ".join(command)) if command else {name: of(name) for name in names()})
        return
    print_text("\n".join(names()))
    note("to print one: orchestrate schema COMMAND. To print all: --all")
