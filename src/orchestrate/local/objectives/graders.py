"""Graders for reinforcement fine-tuning that this machine can run. Torch-free.

The format is OpenAI's (`openai.types.graders`): `string_check`, `text_similarity`, `python`, and `multi`,
which combines the others. `refusal` returns the reason if a grader cannot run here, for example because it
needs another model or a service. The code of a `python` grader runs only if the user explicitly allows it.
Including it in the spec is not enough. The code runs in a separate process with as much isolation as possible
(`isolation`) and limits on time, memory and files."""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import msgspec

from orchestrate.core.child import Child, Ended, TooLate
from orchestrate.errors import RunFailed
from orchestrate.local import objectives as isolating
from orchestrate.local.objectives import Isolation

if TYPE_CHECKING:
    from orchestrate.data.tokens.answers import ReadAnswer


_LONGEST_BYTES = 64 << 10
STARTUP_SECONDS = 30.0
"""Time limit in seconds for starting Python and running the code's imports, in addition to the limit for one
answer."""


class GraderCode:
    """Runs a user's `def grade(sample, item) -> float` in a separate process (`grader_process.py`) with the
    given isolation. The process starts when the first answer is graded, and restarts after a crash."""

    def __init__(self, source: str, seconds: float, isolation: Isolation) -> None:
        self._source, self._seconds, self._isolation = source, seconds, isolation
        self._child: Child | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._broken: dict[str, Any] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """Run the grader's code on one answer. Returns `{"score": ...}` or `{"error": ...}`."""
        if self._broken is None and self._child is None:
            self._start()
        if self._broken is not None:
            return self._broken
        return self._exchange(question, self._seconds)

    def close(self) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="grader-")
        script = Path(__file__).resolve().with_name("grader_process.py")
        self._child = Child(
            self._isolation.command(script, Path(self._folder.name)),
            env=self._isolation.environment(),
            name="the code's process",
            cwd=self._folder.name,
            keeps_words=False,
            longest_bytes=_LONGEST_BYTES,
        )
        said = self._exchange(self._source, STARTUP_SECONDS + self._seconds)
        self._broken = said or None

    def _exchange(self, line: Any, seconds: float) -> dict[str, Any]:
        assert self._child is not None  # noqa: S101  started by `ask`
        try:
            answer = self._child.exchange(json.dumps(line).encode(), seconds)
        except TooLate:
            self._stop()
            return {"error": f"the code took longer than {seconds:g} s"}
        except Ended as ended:
            self._stop()
            return {"error": f"the code's process exited with code {ended.code}"}
        if (said := _said(answer)) is None:
            self._stop()
            return {"error": "the code was stopped because it wrote to the channel reserved for results"}
        return said

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.close(0)


def _said(answer: bytes) -> dict[str, Any] | None:
    """Parse a line from the grader process. Returns `None` if the user's code wrote it."""
    try:
        said: Any = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    match said:
        case {"score": int() | float()} | {"error": str()}:
            return cast("dict[str, Any]", said) if len(cast("dict[str, Any]", said)) == 1 else None
        case dict() if not said:
            return {}
        case _:
            return None


KINDS = ("string_check", "text_similarity", "python", "multi")
OPERATIONS = ("eq", "ne", "like", "ilike")
METRICS = ("fuzzy_match", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l")
ELSEWHERE = {
    "score_model": "not supported for training on this machine, because it calls a model API for each answer",
    "label_model": "not supported for training on this machine, because it calls a model API for each answer",
    "endpoint": "not supported for training on this machine, because it calls a server for each answer",
}
_FIELDS = {
    "string_check": {"input", "reference", "operation"},
    "text_similarity": {"input", "reference", "evaluation_metric"},
    "python": {"source"},
    "multi": {"graders", "calculate_output"},
}
LONGEST_FORMULA = 10_000
_SAMPLE = ("output_text", "output_json", "output_tools", "choices")
_CODE = (
    "the grader's code would run on this machine. If you trust the code: orchestrate "
    "--allow-grader-code ... (or "
    "ORCHESTRATE_ALLOW_GRADER_CODE=1 in your environment)"
)
_PLACE = re.compile(r"\w[\w.\[\]-]*")


class GradingError(Exception):
    """Raised if an answer cannot be graded."""


class GraderFailedError(GradingError):
    """Raised if the grader failed, whatever the answer: the grading model did not return a grade."""


@dataclass(frozen=True)
class Grade:
    """The grade of one answer. If the answer could not be graded, `score` is 0 and `error` is the reason."""

    score: float
    error: str | None = None
    unrated: bool = False
    """True if the grader failed, so the score says nothing about the answer."""


Score = Callable[[dict[str, Any], dict[str, Any]], float]
"""A function (sample, item) -> reward."""


class Grader:
    """Grades answers. Use it as a context manager, because it may start a process."""

    def __init__(
        self,
        grader: Mapping[str, Any],
        *,
        seconds: float = 5.0,
        isolation: Isolation | None = None,
        asks: Mapping[str, Callable[[Mapping[str, Any]], Score]] | None = None,
    ) -> None:
        """Prepare a grader. `isolation` sets how code is isolated, by default in the best way available on
        this machine. `seconds` is the limit for one answer. `asks` lists kinds of `ELSEWHERE` for which the
        caller queries a model. Raises `RunFailed` for a grader that `refusal` rejects."""
        self._asks = asks or {}
        if reason := refusal(grader, allow_code=True, asks=tuple(self._asks)):
            raise RunFailed(f"grader: {reason}", fix="change method.grader in the spec")
        self.isolation = (isolation or isolating.isolation()) if runs_code(grader) else None
        """Isolation of the grader's code. `None` if the grader has no code."""
        self._codes: list[GraderCode] = []
        self._seconds = seconds
        self._score = self._compile(grader)

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for code in self._codes:
            code.close()

    def grade(self, answers: Sequence[str | ReadAnswer], items: Sequence[dict[str, Any]]) -> list[Grade]:
        """Grade each answer, in order. `items` are the rows that the prompts came from. Answers without
        reasoning or tool calls can be strings."""
        return [self._one(sample_of(a), item) for a, item in zip(answers, items, strict=True)]

    def _one(self, sample: dict[str, Any], item: dict[str, Any]) -> Grade:
        try:
            score = self._score(sample, item)
        except GradingError as error:
            return Grade(0.0, str(error), isinstance(error, GraderFailedError))
        return Grade(score) if math.isfinite(score) else Grade(0.0, f"the grader returned {score}")

    def _compile(self, grader: Mapping[str, Any]) -> Score:
        match grader["type"]:
            case kind if kind in self._asks:
                return self._asks[kind](grader)
            case "string_check":
                return partial(_string_check, grader)
            case "text_similarity":
                return partial(_text_similarity, grader)
            case "python":
                assert self.isolation is not None  # noqa: S101  there is code
                code = GraderCode(str(grader["source"]), self._seconds, self.isolation)
                self._codes.append(code)
                return partial(_python, code)
            case _:
                parts = {str(n): self._compile(g) for n, g in dict(grader["graders"]).items()}
                formula = Formula.parse(str(grader["calculate_output"]))
                return partial(_multi, parts, formula)


def sample_of(answer: str | ReadAnswer) -> dict[str, Any]:
    """Convert an answer to OpenAI's format for graders. The reasoning is excluded."""
    text, made = (answer, ()) if isinstance(answer, str) else (answer.content, answer.tool_calls)
    try:
        parsed: Any = msgspec.json.decode(text)
    except msgspec.DecodeError:
        parsed = None
    calls = [msgspec.to_builtins(call) for call in made]
    message = {"role": "assistant", "content": text, **({"tool_calls": calls} if calls else {})}
    choice = {"message": message}
    return {"output_text": text, "output_json": parsed, "output_tools": calls, "choices": [choice]}


def refusal(grader: Mapping[str, Any], *, allow_code: bool, asks: Sequence[str] = ()) -> str | None:
    """Return the reason why this machine cannot run the grader, or `None` if it can. Graders whose type is in
    `ELSEWHERE` call a model or a server. They are accepted only if `asks` contains their type, because the
    caller then makes these calls."""
    kind = str(grader.get("type"))
    if "evaluator" in grader and "type" not in grader:
        return (
            "evaluators are only supported on hosted backends. Use a grader whose type is one of "
            f"{', '.join(KINDS)}"
        )
    if kind in asks:
        return _model_refusal(grader)
    if kind in ELSEWHERE:
        return f"{kind}: {ELSEWHERE[kind]}"
    if kind not in KINDS:
        return f"type must be one of {', '.join(KINDS)}, got {grader.get('type')!r}"
    if missing := sorted(_FIELDS[kind] - grader.keys()):
        return f"{kind} needs {', '.join(missing)}"
    if kind == "multi":
        return _multi_refusal(grader, allow_code, asks)
    if wrong := next((n for n in sorted(_FIELDS[kind]) if not isinstance(grader[n], str)), None):
        return f"{wrong} must be text"
    if kind == "python":
        return None if allow_code else _CODE
    if kind == "string_check" and grader["operation"] not in OPERATIONS:
        return f"operation must be one of {', '.join(OPERATIONS)}, got {grader['operation']!r}"
    if kind == "text_similarity" and grader["evaluation_metric"] not in METRICS:
        metrics = ", ".join(METRICS)
        return (
            f"evaluation_metric {grader['evaluation_metric']!r} is not supported on this machine. "
            f"Use one of {metrics}"
        )
    return next(filter(None, map(_slot_refusal, _slots(grader))), None)


def _model_refusal(grader: Mapping[str, Any]) -> str | None:
    if missing := sorted({"input", "model"} - grader.keys()):
        return f"{grader['type']} needs {', '.join(missing)}"
    if not isinstance(grader["input"], list) or not grader["input"]:
        return "input must be a non-empty list of messages"
    limits: Any = grader.get("range") or [0, 1]
    if not isinstance(limits, list) or len(limits) != 2 or not limits[0] < limits[1]:  # pyright: ignore[reportUnknownArgumentType]  # from a file
        return "range must be two numbers in ascending order"
    return next(filter(None, map(_slot_refusal, _slots(grader))), None)


def _multi_refusal(grader: Mapping[str, Any], allow_code: bool, asks: Sequence[str]) -> str | None:
    given = grader["graders"]
    if not isinstance(given, Mapping) or not given:
        return "graders must be a mapping from names to graders"
    parts = cast("Mapping[str, Any]", given)
    for name, part in parts.items():
        if not isinstance(part, Mapping):
            return f"graders.{name} must be a mapping"
        inner = cast("Mapping[str, Any]", part)
        if inner.get("type") == "multi":
            return f"graders.{name}: a multi grader cannot contain another multi grader"
        if reason := refusal(inner, allow_code=allow_code, asks=asks):
            return f"graders.{name}: {reason}"
    if len(str(grader["calculate_output"])) > LONGEST_FORMULA:
        return f"calculate_output has more than {LONGEST_FORMULA:,} characters"
    try:
        unknown = Formula.parse(str(grader["calculate_output"])).names - {str(n) for n in parts}
    except GradingError as error:
        return f"calculate_output: {error}"
    return f"calculate_output uses {sorted(unknown)[0]}, which is not defined in graders" if unknown else None


def _slots(grader: Mapping[str, Any]) -> list[str]:
    """Return the references in a grader's templates."""
    parts = (part for name in ("input", "reference") for part in _parts(str(grader.get(name, ""))))
    return [text for text, slot in parts if slot]


def _slot_refusal(slot: str) -> str | None:
    if not _PLACE.fullmatch(slot):
        return f"{{{{ {slot} }}}} must be a reference such as item.answer or item.answers[0]"
    root, *path = _keys(slot)
    if path and (root == "item" or (root == "sample" and path[0] in _SAMPLE)):
        return None
    places = ", ".join(f"sample.{name}" for name in _SAMPLE)
    return f"{slot} must be item.FIELD or {places}"


def runs_code(grader: Mapping[str, Any]) -> bool:
    """Return True if the grader runs code. The grader must be valid."""
    if grader.get("type") == "multi":
        parts: dict[str, dict[str, Any]] = grader["graders"]
        return any(map(runs_code, parts.values()))
    return grader.get("type") == "python"


def fields_read(grader: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the row fields that the grader's templates use, such as `answer` or `deep.n`. Excludes fields
    that only its code uses. The grader must be valid."""
    if grader["type"] == "multi":
        parts: dict[str, dict[str, Any]] = grader["graders"]
        return tuple(sorted({field for part in parts.values() for field in fields_read(part)}))
    return tuple(sorted({s.removeprefix("item.") for s in _slots(grader) if s.startswith("item.")}))


def lacks(item: Mapping[str, Any], field: str) -> bool:
    """Return whether a row lacks a field that a grader reads."""
    try:
        _at(item, field)
    except GradingError:
        return True
    return False


# -- templates ---------------------------------------------------------------------------------------------


def fill(template: str, sample: Mapping[str, Any], item: Mapping[str, Any]) -> str:
    """Fill a template such as `{{ item.answer }}` or `{{ sample.output_json.total }}`. Raises
    `GradingError` for missing fields."""
    whole = {"sample": sample, "item": item}
    return "".join(_shown(_at(whole, text)) if slot else text for text, slot in _parts(template))


def _parts(template: str) -> Iterator[tuple[str, bool]]:
    """Split a template into its texts and slots, each with whether it is a slot. Takes linear time. A regular
    expression would take cubic time on malicious templates."""
    at = 0
    while (begin := template.find("{{", at)) >= 0 and (end := template.find("}}", begin + 2)) >= 0:
        yield template[at:begin], False
        yield template[begin + 2 : end].strip(), True
        at = end + 2
    yield template[at:], False


def _at(value: Any, path: str) -> Any:
    found = value
    for key in _keys(path):
        try:
            found = found[int(key) if type(found) is list else key]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise GradingError(f"{path} does not exist") from error
    return found


def _keys(path: str) -> list[str]:
    return re.findall(r"[^.\[\]]+", path)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


# -- graders -----------------------------------------------------------------------------------------------


def _string_check(grader: Mapping[str, Any], sample: dict[str, Any], item: dict[str, Any]) -> float:
    given, wanted = (fill(str(grader[name]), sample, item) for name in ("input", "reference"))
    match grader["operation"]:
        case "eq":
            return float(given == wanted)
        case "ne":
            return float(given != wanted)
        case "like":
            return float(wanted in given)
        case _:
            return float(wanted.casefold() in given.casefold())


def _text_similarity(grader: Mapping[str, Any], sample: dict[str, Any], item: dict[str, Any]) -> float:
    given, wanted = (fill(str(grader[name]), sample, item) for name in ("input", "reference"))
    metric = str(grader["evaluation_metric"])
    if metric == "fuzzy_match":
        from rapidfuzz.fuzz import ratio

        return ratio(given, wanted) / 100
    a, b = (re.findall(r"\w+", text.lower()) for text in (given, wanted))
    if metric == "rouge_l":
        from rapidfuzz.distance import LCSseq

        return _f1(LCSseq.similarity(a, b), len(a), len(b))
    n = int(metric[-1])
    left, right = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (a, b))
    return _f1((left & right).total(), left.total(), right.total())


def _f1(shared: int, of_given: int, of_wanted: int) -> float:
    return 2 * shared / (of_given + of_wanted) if of_given + of_wanted else 0.0


def _python(code: GraderCode, sample: dict[str, Any], item: dict[str, Any]) -> float:
    answer = code.ask({"sample": sample, "item": item})
    if "error" in answer:
        raise GradingError(str(answer["error"]))
    return float(answer["score"])


def _multi(
    parts: Mapping[str, Score], formula: Formula, sample: dict[str, Any], item: dict[str, Any]
) -> float:
    return formula.value({name: score(sample, item) for name, score in parts.items()})


# -- the formula of a multi grader -------------------------------------------------------------------------


def _divided(a: float, b: float) -> float:
    return a / b


_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: _divided,
    ast.Pow: math.pow,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "min": min,
    "max": max,
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


@dataclass(frozen=True)
class Formula:
    """An arithmetic expression over the names of graders. Any other code is rejected."""

    tree: ast.expr
    names: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Formula:
        """Parse a formula. Raises `GradingError` if it is invalid."""
        try:
            tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise GradingError(f"{text[:100]!r} is not a valid formula") from error
        names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} - _FUNCTIONS.keys()
        formula = cls(tree, frozenset(names))
        formula.value(dict.fromkeys(names, 0.5), checking=True)
        return formula

    def value(self, values: Mapping[str, float], *, checking: bool = False) -> float:
        """Evaluate the formula with these values. Raises `GradingError` if that fails. With `checking`,
        returns 0 instead if the error depends on the numbers, such as a division by zero."""
        try:
            return float(_value(self.tree, values))
        except RecursionError as error:
            raise GradingError("calculate_output is nested too deeply") from error
        except (ArithmeticError, ValueError, TypeError) as error:
            if checking and not isinstance(error, TypeError):
                return 0.0
            raise GradingError(f"calculate_output: {error}") from error


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=bool() | str() | bytes()):
            pass
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, values), _value(right, values))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(operand, values))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(a, values) for a in args))
        case _:
            pass
    raise GradingError(f"{ast.unparse(node)!r} is not allowed in a formula of grader names and numbers")
