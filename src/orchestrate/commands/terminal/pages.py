"""What the pages of help have in common: an example on each, and people's words for the types of values."""

from __future__ import annotations

import inspect
import re
import shutil
from typing import Any

EXAMPLES = {
    "check": "orchestrate check finetune.yaml --provider openai,together",
    "plan": "orchestrate plan --provider all",
    "quote": 'orchestrate quote --traffic "20k req/day, 900 in, 150 out"',
    "submit": "orchestrate submit --provider together --max-cost 25 --watch",
    "rerun": "orchestrate rerun last --provider fireworks --max-cost 25",
    "sweep": "orchestrate sweep -p local --grid learning_rate=1e-4,2e-4",
    "queue add": "orchestrate queue add --provider together --max-cost 25",
    "queue ls": "orchestrate queue ls --json",
    "queue rm": "orchestrate queue rm 3",
    "queue pause": "orchestrate queue pause 3",
    "queue resume": "orchestrate queue resume 3",
    "queue run": "orchestrate queue run",
    "runs": "orchestrate runs --provider together --status running",
    "ui": "orchestrate ui",
    "mcp": "orchestrate mcp",
    "show": "orchestrate show last --refresh",
    "watch": "orchestrate watch last",
    "events": "orchestrate events last",
    "metrics": "orchestrate metrics last --json",
    "checkpoints": "orchestrate checkpoints last",
    "cancel": "orchestrate cancel last",
    "pause": "orchestrate pause last",
    "resume": "orchestrate resume last",
    "abandon": 'orchestrate abandon last --reason "the account was closed"',
    "sync": "orchestrate sync",
    "worker": "orchestrate worker --notify-desktop",
    "spending": "orchestrate spending --by backend,month",
    "import": "orchestrate import openai",
    "migrate": "orchestrate migrate last",
    "record": "orchestrate record last --max-cost 5",
    "recover": "orchestrate recover --provider openai,together",
    "eval": "orchestrate eval last --test test.jsonl --target 0.9",
    "regress": "orchestrate regress last --gate",
    "compare": "orchestrate compare last run-1q -o report.html --open",
    "review": "orchestrate review last",
    "chat": 'orchestrate chat last "Where is my order?"',
    "download": "orchestrate download last --to models/support",
    "export": "orchestrate export last out --to gguf",
    "merge": "orchestrate merge run-1q run-2k -o merged",
    "serve": "orchestrate serve last",
    "ab serve": "orchestrate ab serve plan.yaml",
    "ab status": "orchestrate ab status support",
    "ab record": "orchestrate ab record support outcomes.jsonl",
    "ab stop": "orchestrate ab stop support",
    "ab size": "orchestrate ab size --rate 0.6 --gain 0.03",
    "verify": "orchestrate verify last",
    "deploy": "orchestrate deploy last --max-hours 2 --yes",
    "undeploy": "orchestrate undeploy last",
    "deployments": "orchestrate deployments",
    "data inspect": "orchestrate data inspect train.jsonl",
    "data check": "orchestrate data check train.jsonl",
    "data convert": "orchestrate data convert train.jsonl --to sharegpt -o out.jsonl",
    "data split": "orchestrate data split train.jsonl 80/10/10",
    "data dedupe": "orchestrate data dedupe train.jsonl -o unique.jsonl",
    "data preview": "orchestrate data preview train.jsonl --model qwen3-8b",
    "data generate": "orchestrate data generate seeds.jsonl --model gpt-4.1",
    "data review": "orchestrate data review train.jsonl",
    "data from-record": "orchestrate data from-record support -o train.jsonl",
    "data from-review": "orchestrate data from-review review-1q -o preferences.jsonl",
    "data judge": "orchestrate data judge train.jsonl --model openai=gpt-4.1",
    "gateway log": "orchestrate gateway log",
    "gateway keys add": "orchestrate gateway keys add ci",
    "gateway keys ls": "orchestrate gateway keys ls",
    "gateway keys revoke": "orchestrate gateway keys revoke ci",
    "advise": "orchestrate advise train.jsonl",
    "models search": "orchestrate models search qwen 8b",
    "models list": "orchestrate models list --provider together",
    "models show": "orchestrate models show qwen3-8b",
    "models refresh": "orchestrate models refresh --provider together",
    "prices list": "orchestrate prices list --provider fireworks",
    "prices show": "orchestrate prices show qwen3-8b",
    "prices check": "orchestrate prices check",
    "prices validate": "orchestrate prices validate rates.yaml",
    "prices accuracy": "orchestrate prices accuracy",
    "demo": "orchestrate demo",
    "init": "orchestrate init tickets.jsonl",
    "keys set": "orchestrate keys set together",
    "keys list": "orchestrate keys list",
    "keys trust": "orchestrate keys trust openai",
    "keys remove": "orchestrate keys remove together",
    "doctor": "orchestrate doctor --online",
    "providers list": "orchestrate providers list",
    "plugins": "orchestrate plugins",
    "sandbox run": "orchestrate sandbox run -- orchestrate submit -p openai --yes",
    "schema": "orchestrate schema show",
    "local bench": "orchestrate local bench",
    "local memory": "orchestrate local memory qwen3-8b",
}
"""By the words of the command; each is taken by it."""

_LINE_END = re.compile(r"(?<!\n)\n(?![\n\s*-])")
"""Of a line within a paragraph, which is wrapped anew at the terminal's width."""


_ROOM = 120
"""Columns that the boxes of options need; on a narrower terminal they would cut names, and plain lines do
not."""


def worded(command: Any, name: str) -> Any:
    """The command, or group of commands, of that name with its example, and with the words that people have
    for types in the place of Python's: typer writes `<list[str]>`."""
    command.epilog = f"Example:  {EXAMPLES[name]}" if name in EXAMPLES else None
    command.help = _LINE_END.sub(" ", inspect.cleandoc(command.help or ""))
    for own, inner in getattr(command, "commands", {}).items():
        worded(inner, f"{name} {own}")
    reworded(command)
    if shutil.get_terminal_size().columns < _ROOM:
        command.rich_markup_mode = None
    return command


def reworded(command: Any) -> None:
    """Its own parameters, and the switch for this page."""
    for parameter in command.params:
        _reword(parameter)
    option_of = command.get_help_option

    def get_help_option(ctx: Any) -> Any:
        option = option_of(ctx)
        if option is not None:
            option.metavar = ""
        return option

    command.get_help_option = get_help_option


def _reword(parameter: Any) -> None:
    if parameter.param_type_name == "argument":
        parameter.display_type_rich = _no_type  # its name says what it is
    elif parameter.metavar is None and (kind := getattr(parameter, "type_descriptor", None)) is not None:
        parameter.metavar = None if kind.is_choice else _word(parameter, kind)


def _word(parameter: Any, kind: Any) -> str:
    """A switch takes no value; what may be given several times says so. `kind` is what typer knows of it,
    from the version on that writes Python's words."""
    if parameter.is_flag or parameter.count:
        return ""
    number = kind.is_ranged or kind.annotation in (int, float)
    word = "NUMBER" if number else "PATH" if kind.is_path else "TEXT"
    return f"{word} ..." if kind.is_list else word


def _no_type(ctx: Any) -> str:
    del ctx
    return ""
