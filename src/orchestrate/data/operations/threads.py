"""Convert exports with one message per row (tickets, emails, OASST trees) to one conversation per row."""

from __future__ import annotations

import mailbox
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.header import decode_header, make_header
from email.message import Message
from email.utils import parseaddr, parsedate_to_datetime
from fnmatch import fnmatch
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec

from orchestrate.data.dataset_reader import first_lines
from orchestrate.data.files import writing
from orchestrate.data.files.sources import source
from orchestrate.data.shapes import named
from orchestrate.data.shapes.row_reader import parse
from orchestrate.errors import DataError, MissingExtra, UsageError
from orchestrate.types import Record


def is_mbox(path: str) -> bool:
    """Return whether a file starts like an mbox. Returns `False` for an unreadable file, because a later
    attempt to read it raises the error."""
    file = Path(path)
    try:
        if not file.is_file():
            return False
        with file.open("rb") as opened:
            return opened.read(5) == b"From "
    except (OSError, ValueError):
        return False


def mbox_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the messages of an mbox as rows, in file order. Each message is assigned to the thread of the
    first message that it refers to."""
    box = mailbox.mbox(path, create=False)
    try:
        parents = {_id(m.get("Message-ID")): _parent(m) for m in box}
        for m in box:
            yield {
                "thread": _root(_id(m.get("Message-ID")), parents),
                "sender": parseaddr(_text(m.get("From")))[1].lower(),
                "time": _text(m.get("Date")),
                "subject": _text(m.get("Subject")),
                "text": _body(m),
            }
    finally:
        box.close()


def _text(header: Any) -> str:
    try:
        return str(make_header(decode_header(str(header or ""))))
    except (LookupError, UnicodeError, ValueError):
        return str(header or "")


def _id(header: Any) -> str:
    return str(header or "").strip()


def _parent(m: Message) -> str | None:
    before = f"{m.get('References') or ''} {m.get('In-Reply-To') or ''}".split()
    return before[0] if before else None


def _root(message: str, parents: dict[str, str | None]) -> str:
    seen: set[str] = set()
    while (parent := parents.get(message)) and message not in seen:
        seen.add(message)
        message = parent
    return message


def _body(m: Message) -> str:
    """Return the plain text of an email, or the text of its HTML if there is none."""
    found: dict[str, str] = {}
    for part in m.walk():
        kind = part.get_content_type()
        if kind in ("text/plain", "text/html") and kind not in found and not part.get_filename():
            raw: Any = part.get_payload(decode=True)
            try:
                found[kind] = raw.decode(part.get_content_charset() or "utf-8", "replace")
            except LookupError:
                found[kind] = raw.decode("utf-8", "replace")
    if "text/plain" in found:
        return found["text/plain"].replace("\r\n", "\n")
    reader = _Words()
    reader.feed(found.get("text/html", ""))
    return "".join(reader.words).strip()


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in ("style", "script", "blockquote")
        if tag in ("br", "p", "div", "tr", "li"):
            self.words.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("style", "script", "blockquote") and self._hidden > 0

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words.append(data)


# Detect internal notes in tickets from the columns that help desk software uses to mark them:
#
# `public` (Zendesk) and `jsdPublic` (Jira), `private` (Freshdesk), `type` and `part_type` (Help Scout,
# Intercom), and common names in other exports.

_PRIVATE = named("private isprivate internal isinternal internalnote isinternalnote isnote staffonly")
_PUBLIC = named("public ispublic jsdpublic customervisible visibletocustomer")
_KINDS = named("type kind messagetype commenttype parttype notetype eventtype visibility")
_NOTES = named("note internal private internalnote privatenote internalcomment privatecomment staff")
"""Values of a `_KINDS` column that mark a message as an internal note."""
_WORDS = {"true": True, "yes": True, "y": True, "t": True, "1": True, "1.0": True} | {
    "false": False, "no": False, "n": False, "f": False, "0": False, "0.0": False,
}  # fmt: skip


def _plain(name: Any) -> str:
    return "".join(c for c in str(name).lower() if c.isalnum())


class InternalNotes:
    """Detects internal notes. `columns` lists the columns that were used for this, so they are not reported
    as unused."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[str, str] = {}
        self.columns: set[str] = set()

    def is_internal(self, row: Mapping[str, Any], n: int) -> bool:
        """Return whether row `n` is an internal note. Raises `DataError` if a column's value is ambiguous."""
        return any([self._says_so(name, value, n) for name, value in row.items()])

    def _says_so(self, column: str, value: Any, n: int) -> bool:
        if value in (None, ""):
            return False
        name = self._names.setdefault(column, _plain(column))
        if name in _KINDS:
            is_note = _plain(value) in _NOTES
            self.columns |= {column} if is_note else set()
            return is_note
        if name not in _PRIVATE | _PUBLIC:
            return False
        said = _WORDS.get(str(value).strip().lower())
        if said is None:
            raise DataError(
                f"{self._path}: row {n}: {str(value)[:40]!r} in {column} does not show whether the "
                "message was public",
                fix=f"set it to true or false. To train on all messages, use --ignore {quote(column)}",
            )
        self.columns.add(column)
        return said is (name in _PRIVATE)


_TEXTS = ("text", "body", "message", "content", "comment", "description", "plain_body")
_TIMES = ("time", "date", "created_at", "created", "timestamp", "sent_at", "created_date", "datetime")
_IN_ORDER = (
    "SELECT m.thread, sender, text, tree FROM m"
    " JOIN (SELECT thread, MIN(n) AS first FROM m GROUP BY thread) AS t ON t.thread = m.thread"
    " ORDER BY first, at, n"
)
SHOWN = 5


@dataclass(frozen=True)
class Columns:
    """The columns of a message table. `assistant`, `user` and `left_out` list values of the `role` column
    (roles, names or addresses), with `*` as a wildcard. An exact value takes precedence over a pattern, and a
    pattern over `*`. Common names for customers are recognized automatically. Without `time`, messages are in
    file order."""

    thread: str
    role: str
    assistant: tuple[str, ...]
    text: str | None = None
    time: str | None = None
    ignored: frozenset[str] = frozenset()
    """Columns to ignore. They are not reported as unused."""
    user: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    """Senders whose messages are left out of all conversations."""


class ThreadsReport(Record, frozen=True, kw_only=True):
    """The result of converting threads to conversations. `shown` maps each kind of finding to the ids of some
    example threads."""

    path: str
    messages: int
    threads: int
    written: int
    open: int
    """Number of threads left out because nobody answered."""
    unanswered_ends: int
    """Number of converted threads whose messages after the last answer were left out."""
    several_agents: int
    """Number of converted threads with answers from several `assistant` senders. Training mixes the styles of
    these senders."""
    unasked: int
    """Number of converted threads whose messages before the first question were left out."""
    empty: int
    """Number of messages that were empty after quotes and the signature were removed."""
    unthreaded: int
    """Number of messages left out because they belong to no thread."""
    aside: int
    """Number of messages left out because they are not on the best path through their message tree."""
    internal: int
    """Number of messages left out because the columns in `internal_by` mark them as internal notes."""
    internal_by: tuple[str, ...]
    shown: dict[str, tuple[str, ...]]
    speakers: dict[str, tuple[str, ...]]
    """Most common senders for each role: assistant, user or left out."""
    other_speakers: int
    """Number of messages left out because their sender is in `Columns.left_out`."""
    time: str | None
    """Column used to sort the messages, or `None` for file order."""
    unread: tuple[str, ...]
    """Unused columns that contain values."""


def columns_of(  # noqa: PLR0913  independent options
    path: str,
    *,
    thread: str | None = None,
    role: str | None = None,
    assistant: Sequence[str] = (),
    text: str | None = None,
    time: str | None = None,
    ignored: Iterable[str] = (),
    user: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Columns | None:
    """Return the columns that identify threads, roles and text. For an mbox file, the thread and role columns
    have defaults. Returns `None` if `thread`, `role` and `assistant` are all missing, in which case the file
    is not read as a table of messages. Raises `UsageError` if only some of them are given."""
    if is_mbox(path):
        thread, role = thread or "thread", role or "sender"
    if thread is None and role is None and not assistant:
        return None
    if thread is None or role is None or not assistant:
        raise UsageError(
            "to build conversations, Orchestrate must know which messages are answers",
            fix="add --thread COLUMN --role COLUMN --assistant VALUE. "
            "An mbox file only needs --assistant ADDRESS",
        )
    return Columns(
        thread, role, tuple(assistant), text, time, frozenset(ignored), tuple(user), tuple(left_out)
    )


def join(path: str, columns: Columns, output: Path) -> ThreadsReport:
    """Write conversations in OpenAI's format. The messages are sorted on disk, not in memory.

    Raises `UsageError` if a column is missing, and `DataError` if a time is invalid, if the role of a speaker
    is unknown, or if no thread has an answer.
    """
    rows = mbox_rows(path) if is_mbox(path) else _rows(path)
    with tempfile.TemporaryDirectory() as folder, closing(sqlite3.connect(f"{folder}/messages.db")) as base:
        base.execute("CREATE TABLE m (thread TEXT, at REAL, n INTEGER, sender TEXT, text TEXT, tree TEXT)")
        reader = _ThreadReader(path, columns)
        base.executemany("INSERT INTO m VALUES (?,?,?,?,?,?)", _messages(path, rows, columns, reader))
        reader.speakers.require_known()
        found = base.execute(_IN_ORDER)
        with writing(output) as file:
            for thread, messages in groupby(found, key=lambda row: row[0]):
                talk = reader.conversation(str(thread), [(s, t, tree) for _, s, t, tree in messages])
                if talk:
                    file.write(msgspec.json.encode({"messages": talk}) + b"\n")
            report = reader.report()
            if not report.written:
                raise DataError(
                    f"no thread in {path} has an answer from {', '.join(columns.assistant)} to a customer",
                    fix="name the customers with --user VALUE and your agents with --assistant VALUE",
                )
    return report


def _rows(path: str) -> Iterator[dict[str, Any]]:
    for line in first_lines(source(path).lines):
        if line.strip():
            value, wrong = parse(line)
            if wrong is not None or not isinstance(value, dict):
                raise DataError(f"{path}: {wrong.message if wrong else 'a row is not an object'}")
            yield value


_TREE = ("message_id", "parent_id", "rank")


def _messages(
    path: str, rows: Iterable[dict[str, Any]], columns: Columns, reader: _ThreadReader
) -> Iterator[tuple[str, float, int, str, str, str | None]]:
    text = time = ""
    read: set[str] = set()
    for n, row in enumerate(rows, 1):
        if n == 1:
            text = columns.text or _first(_TEXTS, row)
            time = columns.time or _first(_TIMES, row, required=False)
            if absent := [c for c in (columns.thread, columns.role, text, time) if c and c not in row]:
                raise UsageError(
                    f"{path} has no column {absent[0]}", fix=f"its columns: {', '.join(list(row)[:20])}"
                )
            reader.time = time or None
            read = {columns.thread, columns.role, text, time}
        tree = {"message_id", "parent_id"} <= row.keys()
        rest = {name: row[name] for name in row.keys() - read - {*_TREE[: 3 * tree]} - columns.ignored}
        reader.unread |= {name for name, value in rest.items() if value not in (None, "")}
        thread: Any = row.get(columns.thread)
        if reader.internal.is_internal(rest, n):
            reader.left_out += 1
            continue
        if thread in (None, ""):
            reader.unthreaded += 1
            continue
        said = row.get(text)
        sender = str(row.get(columns.role))
        at = _seconds(row.get(time), path, n, time) if time else 0.0
        if reader.speakers.count(sender) in (None, LEFT_OUT):
            continue
        yield (
            str(thread),
            at,
            n,
            sender,
            said if isinstance(said, str) else "",
            msgspec.json.encode([row.get(name) for name in _TREE]).decode() if tree else None,
        )


def _first(names: tuple[str, ...], row: dict[str, Any], *, required: bool = True) -> str:
    plain = {column.strip().lower(): column for column in row}
    name = next((plain[name] for name in names if name in plain), "")
    if required and not name:
        raise UsageError(
            "cannot tell which column contains the text", fix=f"add --text COLUMN, one of: {', '.join(row)}"
        )
    return name


def _seconds(value: Any, path: str, n: int, column: str) -> float:
    """Parse a Unix time, an ISO 8601 time or an email date. Times without a zone are UTC."""
    if isinstance(value, int | float):
        return float(value) / (1000 if value > 1e11 else 1)
    text = str(value or "").strip()
    for read in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            at = read(text)
        except (ValueError, TypeError):
            continue
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    try:
        return float(text)
    except ValueError as error:
        raise DataError(
            f"{path}: row {n}: {text[:40]!r} in {column} is not a valid time",
            fix="write times as 2026-03-01T10:00:00Z, or use another column: --time COLUMN",
        ) from error


_CUSTOMERS = named(
    "customer client user enduser requester visitor human guest buyer contact consumer shopper caller "
    "member subscriber patient student prompter person reporter"
)
"""Roles of customers and users."""
ASSISTANT, USER, LEFT_OUT = "assistant", "user", "left out"
_MOST_SPEAKERS = 10_000
"""Maximum number of distinct speakers that are counted."""


class _Speakers:
    """Roles of senders. Unknown senders are an error, because a colleague's note could be trained on as a
    customer's message."""

    def __init__(self, path: str, columns: Columns) -> None:
        self._path, self._column, self._assistant = path, columns.role, columns.assistant
        rules = [
            (pattern, part)
            for part, patterns in (
                (ASSISTANT, columns.assistant), (LEFT_OUT, columns.left_out), (USER, columns.user)
            )
            for pattern in map(_as_pattern, patterns)
        ]  # fmt: skip
        self._rules = sorted(rules, key=lambda rule: ("*" in rule[0]) + (rule[0] == "*"))
        """Rules by precedence: names, then patterns, then the wildcard `*`."""
        self._homes = {p.rpartition("@")[2] for p, part in self._rules if part == ASSISTANT and "@" in p}
        self._parts: dict[str, str | None] = {}
        self.counts: Counter[tuple[str | None, str]] = Counter()

    def part_of(self, sender: str) -> str | None:
        """Return the role of a sender, or `None` when it is unknown."""
        name = sender.strip().lower()
        if name not in self._parts:
            if len(self._parts) >= _MOST_SPEAKERS:
                self._parts.clear()
            self._parts[name] = self._found(name)
        return self._parts[name]

    def count(self, sender: str) -> str | None:
        """Return the same role as `part_of` and count the message. Call it once for each message."""
        part = self.part_of(sender)
        if len(self.counts) < _MOST_SPEAKERS or (part, sender) in self.counts:
            self.counts[part, sender] += 1
        return part

    def _found(self, name: str) -> str | None:
        for pattern, part in self._rules:
            if fnmatch(name, pattern):
                return part
        if "@" in name:  # not a colleague's address
            return None if name.rpartition("@")[2] in self._homes else USER
        return USER if _plain(name) in _CUSTOMERS else None

    def require_known(self) -> None:
        if all(part != ASSISTANT for part, _ in self.counts):
            senders = Counter({sender: n for (_, sender), n in self.counts.items()})
            shown = ", ".join(f"{sender} ({n:,})" for sender, n in senders.most_common(6))
            raise DataError(
                f"no thread in {self._path} has an answer from {', '.join(self._assistant)}",
                fix=f"set --assistant to a value in {self._column}: {shown}",
            )
        unknown = Counter({sender: n for (part, sender), n in self.counts.items() if part is None})
        if not unknown:
            return
        shown = ", ".join(f"{sender!r} ({n:,})" for sender, n in unknown.most_common(6))
        more = f" and {len(unknown) - 6:,} others" if len(unknown) > 6 else ""
        first = unknown.most_common(1)[0][0]
        raise DataError(
            f"{self._path}: the column {self._column} contains {shown}{more}, which may or may "
            "not be customers",
            fix=f"drop a sender's messages with --leave-out {quote(first)}, or treat the sender as a "
            f"customer with --user {quote(first)}. Repeat either option for more names. * matches anything",
        )

    def listed(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, list[str]] = {}
        for (part, sender), _ in self.counts.most_common():
            found.setdefault(part or "", []).append(sender)
        return {part: tuple(senders[:SHOWN]) for part, senders in found.items()}

    def left_out(self) -> int:
        return sum(n for (part, _), n in self.counts.items() if part == LEFT_OUT)


def _as_pattern(value: str) -> str:
    """Escape all wildcards of `fnmatch` except `*`, because names may contain the others."""
    return value.strip().lower().translate(str.maketrans({"[": "[[]", "?": "[?]"}))


class _ThreadReader:
    """Builder of conversations that counts what its report lists."""

    def __init__(self, path: str, columns: Columns) -> None:
        self._path = path
        self.internal = InternalNotes(path)
        self.left_out = 0
        self.time: str | None = None
        self.unread: set[str] = set()
        self.unthreaded = self._aside = 0
        self.speakers = _Speakers(path, columns)
        self._counts: dict[str, int] = dict.fromkeys(
            (
                "messages",
                "threads",
                "written",
                "open",
                "unanswered_ends",
                "several_agents",
                "unasked",
                "empty",
            ),
            0,
        )
        self._shown: dict[str, list[str]] = {}

    def conversation(self, thread: str, messages: list[tuple[str, str, str | None]]) -> list[dict[str, str]]:
        """Build the conversation of a thread. Consecutive messages from the same side are merged. The result
        is empty when nobody answered."""
        self._counts["messages"] += len(messages)
        self._counts["threads"] += 1
        if all(tree is not None for _, _, tree in messages):
            whole, messages = messages, _best_path(messages)
            self._aside += len(whole) - len(messages)
        talk: list[dict[str, str]] = []
        agents: set[str] = set()
        for sender, text, _ in messages:
            said = without_quotes(text)
            if not said:
                self._counts["empty"] += 1
                continue
            name = sender.strip().lower()
            role = self.speakers.part_of(sender) or USER
            if role == ASSISTANT:
                agents.add(name)
            if talk and talk[-1]["role"] == role:
                talk[-1]["content"] += f"\n\n{said}"
            else:
                talk.append({"role": role, "content": said})
        if talk and talk[0]["role"] == "assistant":
            talk = talk[1:]
            self._note("unasked", thread)
        if len(talk) < 2:
            self._note("open", thread)
            return []
        if talk[-1]["role"] == "user":
            talk = talk[:-1]
            self._note("unanswered_ends", thread)
        if len(agents) > 1:
            self._note("several_agents", thread)
        self._counts["written"] += 1
        return talk

    def _note(self, what: str, thread: str) -> None:
        self._counts[what] += 1
        self._shown.setdefault(what, []).extend([thread] if len(self._shown.get(what, ())) < SHOWN else [])

    def report(self) -> ThreadsReport:
        shown = {what: tuple(threads) for what, threads in self._shown.items()}
        return ThreadsReport(
            path=self._path,
            shown=shown,
            time=self.time,
            speakers=self.speakers.listed(),
            other_speakers=self.speakers.left_out(),
            unread=tuple(sorted(self.unread - self.internal.columns)),
            internal=self.left_out,
            internal_by=tuple(sorted(self.internal.columns)),
            unthreaded=self.unthreaded,
            aside=self._aside,
            **self._counts,
        )


def _best_path(messages: list[tuple[str, str, str | None]]) -> list[tuple[str, str, str | None]]:
    """Follow an OASST tree from its root, always to the reply that people ranked first."""
    trees = [msgspec.json.decode(tree or "[]") for _, _, tree in messages]
    ids = [str(id) for id, _, _ in trees]
    children: dict[str | None, list[tuple[float, int]]] = {}
    for i, (_, parent, rank) in enumerate(trees):
        above = str(parent) if str(parent) in ids else None
        children.setdefault(above, []).append((_rank(rank), i))
    path: list[tuple[str, str, str | None]] = []
    at: str | None = None
    while (next_ones := children.pop(at, None)) is not None:
        _, i = min(next_ones)
        path.append(messages[i])
        at = ids[i]
    return path


def _rank(value: Any) -> float:
    """Return a message's rank. Messages without a rank come last."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return 1e9


def without_quotes(text: str) -> str:
    """Return the newly written text of a message, without the quoted messages below it and without the
    signature. Raises `MissingExtra` if mail-parser-reply is not installed."""
    try:
        from mailparser_reply import EmailReplyParser  # pyright: ignore[reportMissingTypeStubs]
    except ImportError as error:
        raise MissingExtra("data", "cutting quoted replies", "mail-parser-reply") from error
    replies = EmailReplyParser(languages=["en", "de", "fr", "es", "it", "nl", "pl"]).read(text).replies
    lines = (replies[0].body or "").strip().split("\n") if replies else []
    while lines and (not lines[-1].strip() or lines[-1].startswith(">")):  # text above the signature
        lines.pop()
    return "\n".join(lines)
