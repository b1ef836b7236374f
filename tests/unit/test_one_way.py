"""Who starts a process, listens on a port, asks a host for answers, holds money against a limit, or refuses
what nobody agreed to pay does it through the one module for it.
What is allowed beside it stands here with its reason: whatever is new, and not here, fails."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache

import pytest
from tests import sources

PROCESSES = {
    "core/child.py": "the one way: a child that is asked",
    "commands/servers/sandbox.py": "runs the user's own command",
    "commands/setup/demo.py": "types commands as a user does",
    "data/passes/__init__.py": "functions go to it by pickle",
    "local/machine.py": "asks nvidia-smi once",
    "local/objectives/__init__.py": "tries what the system allows, and asks nothing",
    "local/run/launcher.py": "a worker that outlives whoever started it",
    "local/run/parallel.py": "members of one training; they speak through torch",
    "local/run/__init__.py": "asks ps once",
    "local/speed/__init__.py": "a measurement in a process of its own, once",
    "places/remote.py": "runs where nothing else of ours may be loaded",
    "runs/watching/background.py": "a watcher that outlives its terminal",
    "runs/watching/channels.py": "the user's own command, told of an end",
    "serving/engines.py": "servers of others, which speak HTTP",
    "serving/export/forms.py": "llama.cpp's converter, once",
}
CHILDREN = {
    "data/passes/__init__.py": "passes over rows: ends the groups that it starts",
    "gateway/grader_trials.py": "a grader that a client sent",
    "local/answers/process.py": "in the child: answers of a model",
    "local/answers/worker.py": "the one client of a process that holds models",
    "local/objectives/graders.py": "a grader, confined",
    "local/run/helper.py": "in the child: ends with its parent",
    "local/sessions/process.py": "in the child: a training session",
    "local/weights/__init__.py": "conversion and merges",
    "places/parent_watch.py": "in the child: ends with its parent",
    "places/kinds/_skypilot/__init__.py": "SkyPilot, in its own environment",
    "runs/watching/channels.py": "ends the group of the user's own command",
    "serving/server/engine.py": "likewise: the error of its end",
    "serving/server/grammars.py": "a schema, compiled within bounds",
    "local/session_server/service.py": "likewise: the error of its end",
}
"""Who asks a child by the one protocol, or is one."""
OPENS = re.compile(
    r"^((asyncio|loop|socket)\.)?(create_server|start_server|start_unix_server|fromfd)$"
    r"|^os\.(fork|forkpty|spawn\w+|posix_spawnp?|exec[lv]\w*|system|popen|startfile)$|\bcreate_subprocess_\w+$"
    r"|\.(listen|serve_forever)$|^pty\.\w+$"
)
OPENED = {
    ("data/passes/__init__.py", "os.fork"): "workers of one pass",
    ("http/web/__init__.py", "socket.create_server"): "the one way to listen",
    ("runs/watching/webhooks.py", "server.serve_forever"): "in the base install",
    ("store/schema.py", "event.listen"): "SQLAlchemy's word for a hook",
}
"""What starts a process or listens without a module that says so."""
SERVERS = {
    "http/web/__init__.py": "the one way",
    "runs/watching/webhooks.py": "in the base install, which has no web framework",
}
LISTENERS = (
    "uvicorn", "hypercorn", "granian", "http.server", "socketserver", "wsgiref", "xmlrpc.server",
    "aiohttp.web", "websockets", "grpc", "tornado", "waitress",
)  # fmt: skip
DOORS = {
    "http/web/__init__.py": "the one way, for what speaks an API",
    "data/operations/review_server.py": "pages: a token in the address, and no keys",
    "evaluation/review/server.py": "pages, likewise",
    "ui/server.py": "pages, likewise",
}
ANSWERS = {
    "ab/launch.py": "passes on what live users ask",
    "gateway/answers.py": "passes on what clients ask",
    "runs/data/generation.py": "questions of `paid`: data/operations/generate.py",
    "runs/evaluation/contenders.py": "questions of `paid`: evaluation/evaluate.py",
    "runs/tuned.py": "a proof: a few questions to what was just deployed",
    "runs/tracked.py": "one question that a person types",
    "serving/proof/host.py": "a proof: a few questions to what was just deployed",
}
"""Who gets answers of a host. What asks many questions asks them by `paid`, which counts and limits them."""

ENCODERS = "http/wire/openai/"
WIRE_WORDS = re.compile(r"(chat\.completion(\.chunk)?|text_completion|response\.(created|output_text\.\w+))$")
"""What an answer of OpenAI's APIs says of itself."""

LIMITS = "paid/limits.py"
PRICES = {
    "costing/rate.py": "the ends of a rate, and what a number can be",
    "costing/ways.py": "which way of serving is cheaper",
    "reports/advice.py": "which offer is cheaper",
    "reports/quotes.py": "which quote is cheaper",
    "runs/preparing/pricing.py": "a host's estimate against the quote, for a report",
    "sandbox/together/host.py": "the stand-in's account has a limit of its own",
    "spec/methods.py": "what a number can be",
    "types/allowance.py": "hours, by the price of one",
}
"""Who compares sums of money that are no limit."""
MONEY = re.compile(r"(usd|usd_per_hour|budget|cap)$")

CONSENT = {
    "paid/consent.py": "the one way, to a price",
    "commands/data/record.py": "to the terms of a model's host",
    "commands/evaluation/ab.py": "to what a missing outcome counts as",
    "commands/runs/delete.py": "to what cannot be undone",
    "commands/runs/spending.py": "to an end of what bills",
    "commands/setup/environment.py": "to the address of a key",
    "commands/terminal/console.py": "on a terminal, to what a script does unasked: ending or resuming a run",
    "commands/training/submit.py": "to a second run of the same",
    "mcp/spending_tools.py": "a no to what is put by it, ends included",
    "serving/agreements.py": "to a license",
}
"""Who refuses because nobody agreed."""
AGREED = re.compile(r"^(_?confirm\w*|_?agree[sd]?|_?ticked|accepted|accept_\w+|consent\w*|yes)$")
UNKNOWN_PRICES = {
    LIMITS: "the one way, where there is a limit",
    "commands/runs/spending.py": "no budget was set",
    "costing/rates/__init__.py": "what a number can be",
    "runs/submit.py": "it could be known: the rows were not counted",
    "sandbox/fireworks/host.py": "what the host answers",
}
"""Who refuses because an amount is unknown."""
NO_PRICE = re.compile(r"^(why_none|unavailable|unpriced|open_end)$")
ARGUMENTS = {
    "cli.py": "the command line",
    "local/run/helper.py": "a process of its own: what it was started with",
    "local/run/worker.py": "likewise",
    "local/speed/bench.py": "likewise",
    "sessions/worker.py": "likewise",
    "local/weights/conversion.py": "sets them for llama.cpp's converter",
    "places/parent_watch.py": "a process of its own, on another machine",
    "serving/llama_server.py": "sets them for llama.cpp's server",
}
"""Who reads or sets the words that a process was started with."""


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


@cache
def imports() -> dict[str, set[str]]:
    return {file: set(imported(nodes)) for file, nodes in sources.nodes().items()}


def users(*modules: str) -> set[str]:
    """Files that import one of the modules, or a part of one."""

    def takes(names: set[str]) -> bool:
        return any(name == module or name.startswith(f"{module}.") for name in names for module in modules)

    return {file for file, names in imports().items() if takes(names)}


def where(decides: Callable[[ast.AST], object]) -> set[str]:
    return {file for file, nodes in sources.nodes().items() if any(map(decides, nodes))}


@pytest.mark.parametrize(
    ("modules", "allowed"),
    [
        (("subprocess", "multiprocessing", "concurrent.futures.ProcessPoolExecutor"), PROCESSES),
        (("orchestrate.core.child",), CHILDREN),
        (LISTENERS, SERVERS),
        (("orchestrate.http.web.RequestGuard", "starlette.applications.Starlette"), DOORS),
        (("orchestrate.providers.base.Chats", "orchestrate.providers.chat"), ANSWERS),
    ],
    ids=["processes", "children", "servers", "doors", "answers"],
)
def test_nobody_goes_around(modules: tuple[str, ...], allowed: dict[str, str]) -> None:
    hosts = "" if modules == LISTENERS else "providers/"  # a host is asked there, and nothing listens
    assert {file for file in users(*modules) if not hosts or not file.startswith(hosts)} == allowed.keys()


def test_nobody_else_writes_answers_in_openais_form() -> None:
    found = {
        file
        for file, nodes in sources.nodes().items()
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and WIRE_WORDS.match(node.value)
    }
    assert found == {f"{ENCODERS}{name}.py" for name in ("chat", "events", "responses")}


def opens(node: ast.AST) -> str | None:
    """What it calls or hands on that starts a process or listens."""
    said = ast.unparse(node) if isinstance(node, ast.Attribute | ast.Name) else ""
    return said if OPENS.search(said) else None


def test_nobody_listens_or_forks_by_other_words() -> None:
    found = {
        (file, said) for file, nodes in sources.nodes().items() for node in nodes if (said := opens(node))
    }
    assert found == OPENED.keys()


@pytest.mark.parametrize(
    "line",
    [
        "socket.create_server(('', 0))", "await asyncio.start_server(f, port=1)", "sock.listen()",
        "await loop.create_server(f)", "os.posix_spawn(p, a, {})", "os.execvp(a, b)",
        "await asyncio.create_subprocess_exec('x')", "server.serve_forever()", "pty.spawn('sh')",
        "os.popen('x')",
    ],
)  # fmt: skip
def test_what_listens_or_forks_is_seen(line: str) -> None:
    assert any(opens(node) for node in ast.walk(ast.parse(line)))


@pytest.mark.parametrize(
    "file", ["data/operations/generate.py", "evaluation/evaluate.py", "evaluation/judges/__init__.py"]
)
def test_what_asks_many_questions_asks_them_by_the_journal(file: str) -> None:
    assert file in users("orchestrate.paid")


def reads_the_command_line(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.argv"


def test_nobody_else_reads_the_command_line() -> None:
    assert where(reads_the_command_line) == ARGUMENTS.keys()


def names(node: ast.AST) -> Iterator[str]:
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            yield name
        case ast.BinOp(left=left, right=right):
            yield from (*names(left), *names(right))
        case ast.Call(args=args):
            for arg in args:
                yield from names(arg)
        case _:
            pass


def decides_on_money(node: ast.AST) -> bool:
    """Compares an amount with another one that is no number, or refuses for the sake of a limit."""
    if isinstance(node, ast.Call):
        return bool({"OverBudget", "UnknownPrice"} & {*names(node.func)})
    if not isinstance(node, ast.Compare) or not any(
        isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE) for op in node.ops
    ):
        return False
    sides = [node.left, *node.comparators]
    numbers = any(isinstance(side, ast.Constant) for side in sides)
    return not numbers and any(MONEY.search(name) for side in sides for name in names(side))


def test_nobody_else_holds_money_against_a_limit() -> None:
    assert where(decides_on_money) == {LIMITS, *PRICES}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("quote.high_usd > left", True),
        ("left < max(run.allowed_usd, most)", True),
        ("raise OverBudget(name, high, limit)", True),
        ("spent - taken >= budget", True),
        ("limit_usd > 0", False),
        ("rows > limit", False),
    ],
)
def test_what_decides_on_money_is_seen(line: str, found: bool) -> None:
    assert any(decides_on_money(node) for node in ast.walk(ast.parse(line))) is found


def texts(node: ast.AST) -> Iterator[str]:
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def every_name(node: ast.AST) -> set[str]:
    return {
        part.id if isinstance(part, ast.Name) else part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Name | ast.Attribute)
    }


def refuses(node: ast.AST) -> ast.expr | None:
    """The condition under which it raises."""
    raises = isinstance(node, ast.If) and any(isinstance(part, ast.Raise) for part in node.body)
    return node.test if raises and isinstance(node, ast.If) else None


def wants_consent(node: ast.AST) -> bool:
    """Raises where nobody said yes, by a flag, a form or a question, or for want of an agreed price."""
    if isinstance(node, ast.Raise):
        return any("price was not confirmed" in text for text in texts(node))
    if (test := refuses(node)) is None:
        return False
    ticked = any(isinstance(part, ast.Constant) and part.value == "unknown" for part in ast.walk(test))
    form = ticked and "first" in every_name(test)
    return form or any(AGREED.search(name) for name in every_name(test) | set(texts(test)))


def wants_a_price(node: ast.AST) -> bool:
    """Raises where an amount is unknown."""
    if (test := refuses(node)) is None:
        return False
    missing = (
        name
        for part in ast.walk(test)
        if isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.Is)
        for name in names(part.left)
    )
    return any(map(MONEY.search, missing)) or any(map(NO_PRICE.search, every_name(test) - {"self"}))


@pytest.mark.parametrize(
    ("decides", "allowed"),
    [(wants_consent, CONSENT), (wants_a_price, UNKNOWN_PRICES)],
    ids=["consent", "price"],
)
def test_nobody_else_refuses_for_the_price(
    decides: Callable[[ast.AST], bool], allowed: dict[str, str]
) -> None:
    assert where(decides) == allowed.keys()


@pytest.mark.parametrize(
    ("line", "consent", "price"),
    [
        ("if high > 0 and not confirm('Begin?', yes=yes):\n raise UsageError('not begun')", True, False),
        ("if limit is None and first(form, 'unknown') != '1':\n raise UsageError('no')", True, False),
        ("if hour is None and not terms.accept_unknown_price:\n raise UsageError('no')", True, False),
        ("raise UsageError('not sent: the price was not confirmed')", True, False),
        ("if quote.high_usd is None and limit_usd is not None:\n raise UsageError('no')", False, True),
        ("if quote.why_none or budget:\n raise UsageError('no')", False, True),
        ("if 'unknown' in state:\n raise UsageError('no')", False, False),
        ("if spent_usd > 0:\n print(spent_usd)", False, False),
    ],
)
def test_what_refuses_for_the_price_is_seen(line: str, consent: bool, price: bool) -> None:
    nodes = list(ast.walk(ast.parse(line)))
    assert (any(map(wants_consent, nodes)), any(map(wants_a_price, nodes))) == (consent, price)


def test_no_classes_share_a_name() -> None:
    """One word has one meaning, inside of functions too."""
    homes: dict[str, list[str]] = {}
    for file, nodes in sources.nodes().items():
        for node in nodes:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name, []).append(file)
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}
