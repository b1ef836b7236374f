"""Compile clients' schemas in a separate process with limits, before the engine compiles them.

A 2 KB schema can take unbounded time and memory, and one engine serves all clients.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import msgspec

from orchestrate.core import child
from orchestrate.http.wire import HostError
from orchestrate.local.run.launcher import worker_environment

SECONDS = 4.0
MEMORY_BYTES = 2 << 30
MOST_BYTES = 64_000
"""Maximum total size of the schemas in one request, in bytes of JSON."""
_KEPT = 256
_AT_ONCE = threading.BoundedSemaphore(2)
_known: dict[str, str] = {}
"""Results for recent schemas: the reason why a schema is not supported, or an empty string."""


def require(form: Mapping[str, Any]) -> None:
    """Require that the schemas of a request's response format and tools can be enforced. Compiles them in a
    separate process with limits on time and memory. Raises `HostError` 400 if one does not compile."""
    functions: list[dict[str, Any]] = [tool["function"] for tool in form["calls"] or ()]
    schemas = [form["schema"], *(function.get("parameters") for function in functions)]
    text = json.dumps([schema for schema in schemas if schema is not None])
    if len(text) > MOST_BYTES:
        raise HostError(
            400, f"the schemas of a request may have at most {MOST_BYTES:,} bytes", param="response_format"
        )
    if text not in _known:
        with _AT_ONCE:
            why = _tried(text)
        for old in list(_known)[: max(0, len(_known) - _KEPT)]:
            _known.pop(old, None)
        _known[text] = why
    if why := _known.get(text, ""):
        raise HostError(400, f"this schema is not supported: {why}", code="unsupported_form")


def _tried(text: str) -> str:
    command = child.python("orchestrate.serving.server.grammars")
    try:
        with child.Child(command, env=worker_environment(1), name="schemas", keeps_words=False) as process:
            return str(process.ask({"schemas": text}, SECONDS)["why"])
    except child.TooLate:
        return f"compiling the schema takes longer than {SECONDS:g} s"
    except (child.Ended, msgspec.MsgspecError):
        return "compiling the schema takes too much time or memory"


def main() -> int:
    """Compile schemas to grammars under limits on memory and CPU time, and report the errors to the parent
    process. Returns the exit code."""
    send = child.answering()
    with suppress(ImportError):  # Windows
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (int(SECONDS), int(SECONDS)))
    try:
        from llguidance import LLMatcher
    except ImportError:
        send({"why": ""})  # the engine says what is missing
        return 0
    for schema in json.loads(next(child.questions())["schemas"]):
        found = LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(json.dumps(schema)))
        if found and not found.startswith("WARNING"):
            send({"why": " ".join(found.partition("\n   1 |")[0].split())[:400]})
            return 0
    send({"why": ""})
    return 0


if __name__ == "__main__":
    sys.exit(main())
