"""Turn functions into commands with options, JSON output and exit codes."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

import msgspec
import typer
from msgspec import Struct

from orchestrate.commands.terminal.console import (
    json_line,
    mark_sandbox,
    print_json,
    printing_json,
    prints_json,
)

Printed = TypeVar("Printed")
Shown = TypeVar("Shown")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY
JSON = Annotated[bool, typer.Option("--json", help="Print only JSON to stdout.")]


class Output(Struct, Generic[Printed], frozen=True):
    """A command's output: the record that `--json` prints, the function that displays it otherwise, and the
    exit code."""

    record: Printed
    view: Callable[[Printed], object]
    code: int = 0

    def print(self) -> int:
        print_json(self.document) if prints_json() else self.show()
        return self.code

    def line(self) -> None:
        """Print this output immediately, on one line if it is JSON. For a command with several outputs, call
        this for each."""
        if prints_json():
            sys.stdout.write(json_line(self.document))
        else:
            self.show()
        sys.stdout.flush()

    @property
    def document(self) -> Any:
        """The record as `--json` prints it."""
        return self.record

    def show(self) -> None:
        self.view(self.record)


class HostOutput(Output[Printed], frozen=True, kw_only=True):
    """Output about a host or a run whose record does not say whether that is a sandbox. A sandbox's output is
    labeled on stderr. With `--json`, each object at the top level has the field `sandbox`."""

    sandbox: bool
    labeled: bool = False
    """True if the command has printed the label already, with its price."""

    @property
    def document(self) -> Any:
        made: Any = msgspec.to_builtins(self.record)
        for one in made if isinstance(self.record, list) else [made]:
            one["sandbox"] = self.sandbox
        return made

    def show(self) -> None:
        mark_sandbox(self.sandbox and not self.labeled and self.view is not shown_already)
        super().show()


def for_people(shown: Shown) -> Shown | None:
    """Return `shown`, or `None` if the command prints JSON. Use this for anything that a command displays
    before its record is complete."""
    return None if prints_json() else shown


def shown_already(record: object) -> None:
    """Do nothing. Use this as the view of a record that the command has already displayed piece by piece."""
    del record


def command(body: Callable[..., Output[Any] | Iterator[Output[Any]] | None]) -> Callable[..., None]:
    """Wrap a command's function for typer. Dataclass parameters are replaced by their fields. Each field
    needs a typer annotation and becomes an option or argument.

    A function that returns an `Output` gets the option `--json`. `orchestrate schema` finds the types of its
    records in the return annotation. A function that continues after printing, such as a server, yields its
    output. A function that prints everything itself must have the return annotation `None`."""
    hints = _hints(body)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if dataclasses.is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(body).parameters.values():
        name = parameter.name
        if name in groups:
            parameters += _fields(groups[name])
        else:
            parameters.append(parameter.replace(kind=_KEYWORD, annotation=hints[name]))
    if body.__annotations__["return"] != "None":
        parameters.append(inspect.Parameter("json", _KEYWORD, default=False, annotation=JSON))

    def run(**given: Any) -> None:
        with printing_json(given.pop("json", False)):
            for name, group in groups.items():
                own = [field.name for field in dataclasses.fields(group)]
                given[name] = group(**{field: given.pop(field) for field in own})
            if code := _print(body(**given)):
                raise typer.Exit(code)

    run.__name__, run.__doc__, run.__module__ = body.__name__, body.__doc__, body.__module__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__dict__.update(__signature__=inspect.Signature(parameters), body=body)
    return run


def _print(made: Output[Any] | Iterator[Output[Any]] | None) -> int:
    if made is None or isinstance(made, Output):
        return made.print() if made is not None else 0
    code = 0
    with closing(made):  # type: ignore[arg-type]
        for output in made:
            code = output.print()
            sys.stdout.flush()
    return code


def _hints(body: Callable[..., Any]) -> dict[str, Any]:
    """Resolve the type hints of the parameters only. `orchestrate schema` imports the return type."""

    def parameters() -> None: ...

    given = body.__annotations__.items()
    parameters.__annotations__ = {name: hint for name, hint in given if name != "return"}
    return get_type_hints(parameters, body.__globals__, include_extras=True)


def _fields(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            _KEYWORD,
            default=inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in dataclasses.fields(group)
    ]
