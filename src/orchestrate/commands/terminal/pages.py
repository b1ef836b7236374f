"""Prepare commands: help pages with examples and plain names for value types, and parameters that start
quickly."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from functools import partial
from textwrap import TextWrapper
from typing import Any, cast

from orchestrate.commands import EXAMPLES

_LINE_END = re.compile(r"(?<!\n)\n(?![\n\s*-])")
"""Matches a line break within a paragraph. Paragraphs are rewrapped to the terminal's width."""


_ROOM = 120
"""Minimum terminal width, in columns, for printing options in boxes. On narrower terminals, boxes would
truncate names, so help is printed as plain text."""


def prepare_help(command: Any, name: str) -> Any:
    """Prepare the help page of a command or command group. Adds its example, and replaces typer's type names,
    such as `<list[str]>`, with plain words."""
    example = EXAMPLES.get(name)
    command.epilog = f"Example:  {example}" if example else None
    command.help = _LINE_END.sub(" ", inspect.cleandoc(command.help or ""))
    for own, inner in getattr(command, "commands", {}).items():
        prepare_help(inner, f"{name} {own}")
    prepare_parameters(command)
    command.get_help = partial(_unbroken, command.get_help)
    if shutil.get_terminal_size().columns < _ROOM:
        command.rich_markup_mode = None
    return command


def prepare_parameters(command: Any) -> None:
    """Prepare all parameters of a command, including `--help`."""
    for parameter in command.params:
        prepare_parameter(parameter)
    option_of = command.get_help_option

    def get_help_option(ctx: Any) -> Any:
        option = option_of(ctx)
        if option is not None:
            prepare_parameter(option)
            option.metavar = ""
        return option

    command.get_help_option = get_help_option


def _unbroken(get_help: Callable[[Any], str], ctx: Any) -> str:
    """Return a help page whose lines never end within a hyphenated word. Option names stay on one line."""
    usual = TextWrapper.wordsep_re
    TextWrapper.wordsep_re = TextWrapper.wordsep_simple_re
    try:
        return get_help(ctx)
    finally:
        TextWrapper.wordsep_re = usual


def prepare_parameter(parameter: Any) -> None:
    """Replace the type name of a parameter with a plain word, and only convert values that need it."""
    parameter.process_value = partial(_process_value, parameter)
    if parameter.param_type_name == "argument":
        parameter.display_type_rich = _no_type  # its name is enough
        parameter.get_usage_pieces = partial(_usage, parameter)
        if parameter.metavar is None:
            parameter.metavar = parameter.name.upper() + ("..." if parameter.nargs != 1 else "")
    elif parameter.metavar is None and (kind := getattr(parameter, "type_descriptor", None)) is not None:
        parameter.metavar = None if kind.is_choice else _word(parameter, kind)


def _process_value(parameter: Any, ctx: Any, value: Any) -> Any:
    """Process a parameter's value as typer does, but skip conversions that change nothing: those of text,
    of default numbers and choices, and of options that were not given. For any conversion, typer imports
    pydantic, which takes a fifth of a short command's time."""
    kind = getattr(parameter, "type_descriptor", None)
    if value is None and not parameter.required:
        value = () if parameter.multiple or parameter.nargs == -1 else None
    elif not _stays(kind, value):
        return cast("Any", type(parameter)).process_value(parameter, ctx, value)
    return value if parameter.callback is None else parameter.callback(ctx, parameter, value)


def _stays(kind: Any, value: Any) -> bool:
    """Return True if typer's conversion would not change the value. `kind` is typer's type, `None` in older
    versions."""
    if kind is None or not isinstance(value, str | int | float) or type(value) is bool:
        return False
    return kind.annotation is type(value) and kind.parameter_info.parser is None


def _word(parameter: Any, kind: Any) -> str:
    """Return the plain name of a value type: empty for switches, and with `...` for repeatable options.
    `kind` is typer's type, in versions that print Python's type names."""
    if parameter.is_flag or parameter.count:
        return ""
    number = kind.is_ranged or kind.annotation in (int, float)
    word = "NUMBER" if number else "PATH" if kind.is_path else "TEXT"
    return f"{word} ..." if kind.is_list else word


def _no_type(ctx: Any) -> str:
    del ctx
    return ""


def _usage(parameter: Any, ctx: Any) -> list[str]:
    """Format an argument as in manuals: RUN, [RUN], RUN... or [RUN...]. Marks that the name already has are
    not repeated."""
    del ctx
    if parameter.hidden:
        return []
    name = parameter.metavar
    if parameter.nargs != 1 and "..." not in name:
        name += "..."
    return [name if parameter.required or name.startswith("[") else f"[{name}]"]
