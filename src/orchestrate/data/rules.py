"""What each host takes. The limits come from the hosts' documentation and API descriptions, late 2026.

A row's traits are judged by each host's table; limits of the whole file are judged by `check`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from msgspec.structs import replace

from orchestrate.data.facts import Facts, TokenCount
from orchestrate.data.rows.examples import KINDS, Kind
from orchestrate.data.rows.traits import Trait
from orchestrate.errors import UsageError
from orchestrate.types import Problem, Severity

GIB = 1 << 30


@dataclass(frozen=True)
class Rule:
    """How a host takes rows with one trait: with an error not at all, when `lossy` without that part of them.
    A lossy error can be allowed."""

    code: str
    severity: Severity
    message: str
    fix: str
    lossy: bool = False


def _no(code: str, message: str, fix: str) -> Rule:
    return Rule(code, Severity.ERROR, message, fix)


_FUNCTION = _no("role-refused", "the role function is not taken", "use tool messages with tool_call_id")
_SYSTEM_LATER = _no(
    "system-not-first", "a system message comes after the first message", "move it to the beginning"
)
_ONE_ANSWER = _no(
    "several-answers",
    "each side of a pair holds exactly one message",
    "keep one assistant message on each side",
)
_INLINE_IMAGES = _no("remote-image", "images have to be inline base64", "put the image in as a data: URL")
_AS_SYSTEM = Rule(
    "developer-as-system", Severity.INFO, "developer messages are sent as system", "nothing to do", lossy=True
)
_NO_NAMES = Rule(
    "names-dropped",
    Severity.WARNING,
    "names of messages are left out",
    "write them into the text",
    lossy=True,
)
_NO_PARALLEL = Rule(
    "parallel-dropped",
    Severity.INFO,
    "parallel_tool_calls is left out",
    "set it when the model is called",
    lossy=True,
)
_NO_ROW_WEIGHT = Rule(
    "row-weight-lost",
    Severity.ERROR,
    "weights of rows are not taken",
    "repeat heavy rows, drop light ones, or convert with --allow-loss",
    lossy=True,
)


NO_SPANS = Rule(
    "loss-spans-lost",
    Severity.ERROR,
    "of some answers only a part carries loss; whole answers are trained here",
    "split these answers into turns with weight 0 and 1, or convert with --allow-loss",
    lossy=True,
)
_LOCAL_IMAGES = _no(
    "local-image",
    "an image is a file on this machine",
    "put it in as a data: URL: orchestrate data convert does",
)
_PAIRS = "; this machine has it, and preference pairs (DPO) are taken"


EVERY_KIND: Mapping[Kind, str | None] = dict.fromkeys(KINDS.values())
"""Nothing is refused."""


@dataclass(frozen=True)
class HostRules:
    kinds: Mapping[Kind, str | None]
    """For each kind of row why it is refused; `None` when it is taken."""
    traits: Mapping[Trait, Rule]
    least_rows: int = 1
    most_rows: int | None = None
    most_bytes: int | None = None
    most_tokens: int | None = None
    """Of a row; longer ones are cut by the host."""
    preference_traits: Mapping[Trait, Rule] = field(default_factory=dict[Trait, Rule])

    def rule(self, trait: Trait, kind: Kind) -> Rule | None:
        if kind == "preference" and trait in self.preference_traits:
            return self.preference_traits[trait]
        return self.traits.get(trait)

    def refused(self, kind: Kind, *, allow_loss: bool = False) -> int:
        """The bits that get a row of this kind refused; with `allow_loss` without those that are only
        lost."""
        mask = 0
        for trait in Trait:
            rule = self.rule(trait, kind)
            if rule is not None and rule.severity is Severity.ERROR and not (rule.lossy and allow_loss):
                mask |= trait
        return mask


HOSTS: dict[str, HostRules] = {
    "openai": HostRules(
        kinds={
            "chat": None,
            "preference": None,
            "unpaired": "OpenAI has no KTO" + _PAIRS,
            "rl": None,
            "completion": "prompt/completion rows are for models that are shut down; "
            "orchestrate data convert --to openai makes chat rows of them",
            "text": "OpenAI trains on conversations only",
        },
        traits={
            Trait.ROW_WEIGHT: _NO_ROW_WEIGHT,
            Trait.REASONING: Rule(
                "reasoning-lost",
                Severity.ERROR,
                "thinking is not taken",
                "remove it, or convert with --allow-loss",
                lossy=True,
            ),
            Trait.IMAGES: Rule(
                "vision-model-only",
                Severity.WARNING,
                "images are taken by gpt-4o-2024-08-06 only",
                "pick that model, or remove the images",
            ),
            Trait.SEVERAL_ANSWERS: _ONE_ANSWER,
            Trait.LOSS_SPANS: NO_SPANS,
            Trait.LOCAL_IMAGES: _LOCAL_IMAGES,
        },
        preference_traits={
            Trait.IMAGES: _no("images-in-pairs", "preference pairs are text only", "remove the images")
        },
        least_rows=10,
        most_bytes=8 * GIB,
        most_tokens=65_536,
    ),
    "together": HostRules(
        kinds={
            "chat": None,
            "preference": None,
            "unpaired": "Together has no KTO" + _PAIRS,
            "completion": None,
            "text": None,
            "rl": "Together has no RFT",
        },
        traits={
            Trait.FUNCTION_ROLE: _FUNCTION,
            Trait.SYSTEM_LATER: _SYSTEM_LATER,
            Trait.STARTS_WRONG: _no(
                "starts-wrong",
                "the first message is neither system nor user",
                "begin with the user's message",
            ),
            Trait.NOT_ALTERNATING: _no(
                "not-alternating",
                "user and assistant have to alternate",
                "join neighbours of one role (--fix does)",
            ),
            Trait.REMOTE_IMAGES: _INLINE_IMAGES,
            Trait.IMAGES_NOT_FROM_USER: _no(
                "image-not-from-user", "only user messages hold images", "move the image to a user message"
            ),
            Trait.MANY_IMAGES: _no("many-images", "a row holds at most 10 images", "split the row"),
            Trait.SEVERAL_ANSWERS: _ONE_ANSWER,
            Trait.LOSS_SPANS: NO_SPANS,
            Trait.LOCAL_IMAGES: _LOCAL_IMAGES,
            Trait.DEVELOPER: _AS_SYSTEM,
            Trait.NAMES: _NO_NAMES,
            Trait.PARALLEL_TOOL_CALLS: _NO_PARALLEL,
        },
        most_bytes=50 * GIB,
    ),
    "fireworks": HostRules(
        kinds={
            "chat": None,
            "preference": None,
            "unpaired": "Fireworks has no KTO" + _PAIRS,
            "completion": None,
            "rl": None,
            "text": "Fireworks takes chat and prompt/completion rows",
        },
        traits={
            Trait.FUNCTION_ROLE: _FUNCTION,
            Trait.SYSTEM_LATER: _SYSTEM_LATER,
            Trait.REMOTE_IMAGES: _INLINE_IMAGES,
            Trait.SEVERAL_ANSWERS: _ONE_ANSWER,
            Trait.LOSS_SPANS: NO_SPANS,
            Trait.LOCAL_IMAGES: _LOCAL_IMAGES,
            Trait.DEVELOPER: _AS_SYSTEM,
            Trait.NAMES: _NO_NAMES,
            Trait.PARALLEL_TOOL_CALLS: _NO_PARALLEL,
        },
        least_rows=3,
        most_rows=3_000_000,
    ),
    "local": HostRules(
        kinds=EVERY_KIND,
        traits={
            Trait.IMAGES: _no("no-vision", "the local engine trains on text only", "remove the images"),
            Trait.LOSS_SPANS: NO_SPANS,
        },
    ),
}
HOSTS["ray"] = HOSTS["local"]
"""A cluster runs the local engine."""
DEFAULT_HOSTS = ("openai", "together", "fireworks", "local")
METHOD_KINDS: dict[str, tuple[Kind, ...]] = {
    "sft": ("chat", "completion", "text"),
    "dpo": ("preference",),
    "kto": ("unpaired",),
    "rft": ("rl",),
}


def host_rules(host: str) -> HostRules:
    """Raises `UsageError` for a host without rules."""
    if host not in HOSTS:
        raise UsageError(f"no data rules for {host!r}; known: {', '.join(HOSTS)}")
    return HOSTS[host]


def check(
    data: Facts,
    host: str,
    *,
    method: str | None = None,
    tokens: TokenCount | None = None,
    context: int | None = None,
    epochs: int | None = None,
    validation: bool = False,
) -> list[Problem]:
    """Each reason for which `host` would refuse or change the dataset, with the first rows concerned.

    `method` is sft, dpo, kto or rft; `tokens` a count of the same data, needed for the checks of length;
    `context` the most tokens that the model trains on; `validation` says that this is the validation file,
    which has no least number of rows. Problems that are wrong everywhere are in `data.problems`, not here.
    """
    rules = host_rules(host)
    found = [_problem(host, data, rule, rows) for rule, rows in _judged(data, rules)]
    found += _kinds(data, host, rules, method)
    found += _sizes(data, host, rules, epochs, validation)
    if tokens is not None:
        found += _lengths(data, host, tokens, rules.most_tokens, context)
    return found


def accepted(data: Facts, host: str) -> int:
    """Rows that the host would take as they are."""
    rules = host_rules(host)
    if rules.kinds[data.kind] is not None:
        return 0
    refused = rules.refused(data.kind)
    return sum(n for mask, n in data.masks.items() if not mask & refused)


def losses(data: Facts, host: str, rules: HostRules | None = None) -> list[Problem]:
    """What the host's format cannot hold of these rows, and rows that it refuses."""
    rules = rules or host_rules(host)
    found = [_problem(host, data, rule, rows) for rule, rows in _judged(data, rules)]
    return found + _kinds(data, host, rules, None)


def _judged(data: Facts, rules: HostRules) -> list[tuple[Rule, Trait]]:
    present = 0
    for mask in data.masks:
        present |= mask
    judged = [(rules.rule(trait, data.kind), trait) for trait in Trait if trait & present]
    return [(rule, trait) for rule, trait in judged if rule is not None]


def _problem(host: str, data: Facts, rule: Rule, trait: Trait) -> Problem:
    count = sum(n for mask, n in data.masks.items() if mask & trait)
    first = data.first_rows.get(trait, ())
    shown = ", ".join(f"{row}" for row in first[:5])
    rows = f"row {shown}" if count == 1 else f"{count:,} rows: {shown}{' ...' if count > 5 else ''}"
    return Problem(
        code=rule.code,
        severity=rule.severity,
        message=f"{rule.message} ({rows})",
        row=first[0] if first else None,
        providers=(host,),
        fix=rule.fix,
        source=data.path,
    )


def _file_problem(
    host: str, data: Facts, code: str, message: str, fix: str, severity: Severity = Severity.ERROR
) -> Problem:
    return Problem(
        code=code, severity=severity, message=message, providers=(host,), fix=fix, source=data.path
    )


def _kinds(data: Facts, host: str, rules: HostRules, method: str | None) -> list[Problem]:
    reason = rules.kinds[data.kind]
    if reason is not None:
        fix = f"orchestrate data convert --to {host}"
        if data.kind == "unpaired":
            fix = "train on pairs with method dpo, or on this machine (--provider local)"
        return [_file_problem(host, data, "kind-refused", reason, fix)]
    if method is not None and data.kind not in METHOD_KINDS[method]:
        message = f"{method} trains on {' or '.join(METHOD_KINDS[method])} rows; these are {data.kind} rows"
        return [_file_problem(host, data, "wrong-kind", message, _other(method, data))]
    if host == "fireworks":
        weighted = sum(n for mask, n in data.masks.items() if mask & Trait.ROW_WEIGHT)
        if 0 < weighted < data.rows:
            message = f"{weighted:,} of {data.rows:,} rows have a weight; all or none may"
            return [
                _file_problem(host, data, "row-weight-mixed", message, "give every row a weight, or none")
            ]
    return []


def _other(method: str, data: Facts) -> str:
    """The method that takes the rows, or the rows that the method takes."""
    if method == "kto" and data.kind == "preference":
        return f"orchestrate data convert {data.path} --to unpaired -o OUT, or method dpo"
    if data.kind == "unpaired":
        return "train with method: {type: dpo, loss: kto}; for sft keep the good rows, without the label"
    return "change the method or the data"


def _sizes(data: Facts, host: str, rules: HostRules, epochs: int | None, validation: bool) -> list[Problem]:
    found: list[Problem] = []
    if data.rows < rules.least_rows and not validation:
        message = f"{data.rows:,} good rows; at least {rules.least_rows} are needed"
        found.append(
            _file_problem(host, data, "too-few-rows", message, "add rows, or repair those with errors")
        )
    if rules.most_rows is not None and data.rows * (epochs or 1) > rules.most_rows:
        message = f"{data.rows:,} rows x {epochs or 1} epochs; at most {rules.most_rows:,} are taken"
        found.append(_file_problem(host, data, "too-many-rows", message, "train fewer rows or epochs"))
    if rules.most_bytes is not None and data.canonical_bytes > rules.most_bytes:
        message = f"{data.canonical_bytes / GIB:.1f} GiB; at most {rules.most_bytes / GIB:.0f} GiB are taken"
        found.append(_file_problem(host, data, "file-too-large", message, "train on fewer rows"))
    return found


def _lengths(
    data: Facts, host: str, tokens: TokenCount, most: int | None, context: int | None
) -> list[Problem]:
    limits = [limit for limit in (most, context) if limit is not None]
    if not limits or tokens.longest <= min(limits):
        return []
    limit = min(limits)
    of_a_row = max(1, len(tokens.lengths) // max(1, data.rows))  # a pair is two sequences
    long = sorted({i // of_a_row for i, length in enumerate(tokens.lengths) if length > limit})
    rows = _numbers(data, long[:5])
    counted = "" if tokens.exact else f", counted with {tokens.tokenizer}"
    longest = f"longest {tokens.longest:,}{counted}"
    which = f"{', '.join(map(str, rows))}{' ...' if len(long) > len(rows) else ''}"
    many = f"{len(long):,} rows are" if len(long) > 1 else "1 row is"
    message = f"{many} longer than {limit:,} tokens and would be cut ({longest}): {which}"
    fix = "shorten them, or raise max_seq_length where the model allows it"
    found = _file_problem(host, data, "too-long", message, fix, Severity.WARNING)
    return [replace(found, row=rows[0])]


def _numbers(data: Facts, places: Sequence[int]) -> list[int]:
    """The row numbers of good rows, given by their places among these."""
    first = islice(data.numbered(), places[-1] + 1)
    return [number for place, (number, _) in enumerate(first) if place in places]
