"""A spec is prepared once for all backends: each file read once, and what was shown is what is submitted."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keyring
import pytest
from keyring.backend import KeyringBackend
from tests.paths import TINY
from typer.testing import CliRunner

from orchestrate import JobSpec, Orchestrator
from orchestrate.cli import app
from orchestrate.data.dataset_reader import open_dataset
from orchestrate.data.passes.scan import LEAST_BYTES
from orchestrate.errors import DataError, MissingKey, OverBudget, UsageError
from orchestrate.settings import config
from orchestrate.types import Severity, TokensFrom

SPLITS = ("train", "validation", "test")
MODELS = {"local": str(TINY), "openai": "gpt-4.1-mini", "together": "qwen3-8b", "fireworks": "qwen3-8b"}
_counted: list[Counter[str]] = []


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _counted and isinstance(arguments[0], str | os.PathLike):
        for opened in _counted:
            opened[Path(os.fspath(arguments[0])).stem] += 1


sys.addaudithook(_count)  # one hook, as none can be taken away


@pytest.fixture
def opened() -> Iterator[Counter[str]]:
    """How often each file, by its name without the ending, has been opened since then."""
    counter: Counter[str] = Counter()
    _counted.append(counter)
    yield counter
    _counted.remove(counter)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # A quote reckons with what else runs on the machine, which is never the same for two of them.
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setenv("ORCHESTRATE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ORCHESTRATE_KEYS", str(tmp_path / "keys.toml"))
    return tmp_path


class Asked(KeyringBackend):
    """An empty keyring that notes for which names it was asked."""

    priority = 1  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def get_password(self, service: str, username: str) -> None:
        self.names.append(username)

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError


def test_the_keyring_is_asked_when_a_key_is_sent_and_not_before(home: Path) -> None:
    (home / "train.jsonl").write_text(rows("train"))
    before, asked = keyring.get_keyring(), Asked()
    keyring.set_keyring(asked)
    try:
        with Orchestrator(config.load()) as ft:
            prepared = ft.prepare(JobSpec(model=MODELS, train="train.jsonl", epochs=1), "all")
            assert {offer.provider for offer in prepared.offers} >= {"openai", "together", "fireworks"}
            ft.runs()
            assert not asked.names
            with pytest.raises(MissingKey):
                ft.provider("together").config.require_key()
        assert asked.names == ["together"]
    finally:
        keyring.set_keyring(before)


def test_a_model_that_a_host_does_not_list_is_not_ranked(home: Path) -> None:
    from orchestrate import reports

    (home / "train.jsonl").write_text(rows("train"))
    raw = "accounts/fireworks/models/something-1b"
    spec = JobSpec(model={"fireworks": raw, "together": "qwen3.5-9b"}, train="train.jsonl", epochs=1)
    with Orchestrator(config.load()) as ft:
        quotes = ft.quote(spec, "together,fireworks")
    listed, unlisted = quotes
    assert (listed.provider, unlisted.provider) == ("together", "fireworks")
    assert unlisted.expected_usd < listed.expected_usd and listed.unlisted is None
    assert unlisted.unlisted == f"fireworks has not confirmed that it can fine-tune {raw}"
    assert "together is the only backend" in reports.quote_markdown(quotes)


def rows(split: str) -> str:
    said = [("user", f"{split} question {{}}"), ("assistant", "answer {}")]
    chats = ([{"role": role, "content": text.format(n)} for role, text in said] for n in range(400))
    return "".join(json.dumps({"messages": chat}) + "\n" for chat in chats)


def written(folder: Path) -> JobSpec:
    for split in SPLITS:
        (folder / f"{split}.jsonl").write_text(rows(split))
    files = {split: f"{split}.jsonl" for split in SPLITS}
    return JobSpec.parse({"model": MODELS, "epochs": 1, **files})


def one_scan(opened: Counter[str]) -> dict[str, int]:
    """How often a file is opened by one scan of it."""
    Path("alone.jsonl").write_text(rows("alone"))
    before = opened["alone"]
    open_dataset("alone.jsonl")
    return dict.fromkeys(SPLITS, opened["alone"] - before)


@pytest.mark.parametrize("backends", ["local", "openai,together,fireworks,local"])
@pytest.mark.parametrize("command", ["check", "quote"])
def test_a_command_scans_each_file_once(
    command: str, backends: str, home: Path, opened: Counter[str]
) -> None:
    spec = written(home)
    (home / "finetune.yaml").write_text(json.dumps(spec.asked()))
    opened.clear()
    done = CliRunner().invoke(app, [command, "--provider", backends, "--json"])
    assert done.exit_code == 0, done.output
    expected = one_scan(opened)
    if command == "quote":
        expected["test"] = 0  # held out: what only reckons never opens it
    assert {split: opened[split] for split in SPLITS} == expected


def test_submit_reads_nothing_again_before_it_sends(home: Path, opened: Counter[str]) -> None:
    spec = written(home)
    opened.clear()
    with Orchestrator(config.load()) as ft:
        names = ["local", "together"]
        prepared = ft.prepare(spec, names)
        for name in names:
            prepared.offer(name).require_fit()
        ft.preflight(prepared, "local")
        prepared.require_unchanged()
    assert {split: opened[split] for split in SPLITS} == one_scan(opened)


def test_what_is_prepared_is_what_check_plan_and_quote_show(home: Path) -> None:
    spec = written(home)
    with Orchestrator(config.load()) as ft:
        prepared = ft.prepare(spec)
        assert [offer.provider for offer in prepared.offers] == ft.backends()
        assert prepared.problems == ft.check(spec)
        assert prepared.quotes == ft.quote(spec)
        assert [offer.translation for offer in prepared.offers] == ft.plan(spec)
        assert not [p for p in prepared.problems if p.severity is Severity.ERROR]


def test_a_file_that_changed_since_it_was_shown_is_refused(home: Path) -> None:
    spec = written(home)
    with Orchestrator(config.load()) as ft:
        prepared = ft.prepare(spec, "local")
        (home / "validation.jsonl").write_text(rows("another"))
        with pytest.raises(DataError, match=r"validation\.jsonl changed after it was checked and quoted"):
            ft.submit(prepared, "local")
        assert ft.runs() == []


def test_a_file_written_anew_with_the_same_rows_is_the_same(home: Path, opened: Counter[str]) -> None:
    spec = written(home)
    with Orchestrator(config.load()) as ft:
        prepared = ft.prepare(spec, "local")
        before = opened["train"]
        prepared.require_unchanged()
        assert opened["train"] == before
        (home / "train.jsonl").write_text(rows("train"))
        prepared.require_unchanged()


def test_only_what_was_prepared_for_it_is_submitted(home: Path) -> None:
    spec = written(home)
    with Orchestrator(config.load()) as ft:
        with pytest.raises(UsageError, match="not prepared for local"):
            ft.submit(ft.prepare(spec, "together"), "local")
        with pytest.raises(UsageError, match="quotes only"):
            ft.submit(ft.prepare(spec, "local", checked=False), "local")
        assert ft.runs() == []


def test_a_mix_is_quoted_checked_and_sent_as_one_file(home: Path, opened: Counter[str]) -> None:
    """As the file that one would have written by hand; `train` is in it twice, of `extra` a half."""
    plain = written(home)
    (home / "extra.jsonl").write_text(rows("extra"))
    mix = [{"path": "train.jsonl", "weight": 2}, {"path": "extra.jsonl", "weight": 0.5, "seed": 5}]
    spec = JobSpec.parse({**plain.asked(), "train": mix})
    with Orchestrator(config.load()) as ft:
        opened.clear()
        prepared = ft.prepare(spec, ["local", "together"])
        once = {split: opened[split] for split in (*SPLITS, "extra")}
        assert once == one_scan(opened) | {"extra": once["train"]}
        assert not [p for p in prepared.problems if p.severity is Severity.ERROR]
        assert not [p for p in prepared.problems if p.code == "duplicate"]
        (told,) = (p for p in prepared.problems if p.code == "mix")
        assert (
            "1,000 rows mixed from train.jsonl (400 rows x 2); extra.jsonl (200 of 400 rows" in told.message
        )
        remote = ft.provider("local").upload(
            prepared.offer("local").spec, prepared.data, prepared.offer("local").translation
        )
        sent = Path(remote.train_id).read_text().splitlines()
        assert sent.count(sent[0]) == 2 and len(sent) == 1000
        assert [str(mark) for mark in prepared.marks] == ["validation.jsonl", "test.jsonl", told.source]
        (home / "by-hand.jsonl").write_text("".join(line + "\n" for line in sent))
        by_hand = ft.prepare(
            JobSpec.parse({**plain.asked(), "train": "by-hand.jsonl"}), ["local", "together"]
        )
        assert by_hand.data.digest == prepared.data.digest == ft.data(spec).digest == remote.digest
        for mine, theirs in zip(prepared.quotes, by_hand.quotes, strict=True):
            assert (mine.provider, mine.billed_tokens) == (theirs.provider, theirs.billed_tokens)
            if mine.provider != "local":  # whose time goes with the machine's load of the moment
                assert mine.expected_usd == theirs.expected_usd
            assert any(line.startswith("1,000 rows mixed from") for line in mine.assumptions)
        prepared.require_unchanged()
    (home / "finetune.yaml").write_text(json.dumps(spec.asked()))
    done = CliRunner().invoke(app, ["check", "--provider", "local"])
    assert done.exit_code == 0 and "1,000 rows mixed from" in " ".join(done.output.split()), done.output
    planned = CliRunner().invoke(app, ["plan", "--provider", "local", "--json"])
    assert "train.jsonl x 2 + " in planned.output


def test_a_quote_counts_by_the_chat_template_that_trains(home: Path) -> None:
    from orchestrate.data.dataset import Dataset
    from orchestrate.local.encoding import Template, encode
    from orchestrate.local.model.loader import load_tokenizer

    own = "{% for m in messages %}{{ m.role * 5 }}{{ m.content }}{{ eos_token * 4 }}{{ more }}{% endfor %}"
    settings = {"more": "and more and more"}
    plain = written(home)
    (home / "own.jinja").write_text(own)
    asked = {"chat_template": str(home / "own.jinja"), "chat_template_kwargs": settings}
    spec = plain.model_copy(update=asked)
    template = Template(load_tokenizer(TINY, own, settings))
    rows = list(Dataset.open(str(spec.train)).examples())
    tokens = sum(len(encode(row, template).ids) for row in rows)
    with Orchestrator(config.load()) as ft:
        prepared = {name: ft.prepare(one, ["local"]) for name, one in (("own", spec), ("plain", plain))}
    shown = {name: str(one.offer("local").quote.to_dict()) for name, one in prepared.items()}
    assert f"{tokens:,}" in shown["own"] or str(tokens) in shown["own"], shown["own"]
    assert f"{tokens:,}" not in shown["plain"] and str(tokens) not in shown["plain"]
    offer = prepared["own"].offer("local")
    assert offer.translation.body["chat_template"] == own
    assert offer.translation.body["chat_template_kwargs"] == settings
    # The file may change; what was shown stays.
    (home / "own.jinja").write_text("{{ messages }}")
    assert offer.spec.chat_template == own


# -- tokens of a sample, or none
# ------------------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path) -> str:
    """A file that is sampled; other rows for each test, as counts are kept by them."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": tmp_path.name + f" {n}" * (n % 300)},
                {"role": "assistant", "content": "Your order is on its way. " * (n % 97 + 1)},
            ]
        }
        for n in range(5000)
    ]
    file = tmp_path / "large.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert file.stat().st_size > LEAST_BYTES
    return str(file)


def test_a_sampled_quote_holds_the_exact_one_and_says_so(large: str) -> None:
    spec = JobSpec(model="gpt-4.1-mini", train=large, epochs=3)
    with Orchestrator() as ft:
        [sampled] = ft.quote(spec, "openai", tokens="sampled")
        [exact] = ft.quote(spec, "openai")
        [again] = ft.quote(spec, "openai", tokens="sampled")
    assert sampled.expected_usd != exact.expected_usd and exact.expected_usd is not None
    assert sampled.low_usd < exact.low_usd <= exact.expected_usd <= exact.high_usd < sampled.high_usd
    assert (sampled.tokens_from, exact.tokens_from) == (TokensFrom.SAMPLED, TokensFrom.EXACT)
    assert any("estimated from a sample (99% interval)" in told for told in sampled.assumptions)
    assert (again.tokens_from, again.high_usd) == (TokensFrom.EXACT, exact.high_usd), "it was counted by then"


@pytest.mark.slow
def test_a_limit_is_checked_by_the_high_end_of_a_sample(large: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sandbox-secret")
    with Orchestrator() as ft:
        prepared = ft.prepare(
            JobSpec(model="gpt-4.1-mini", train=large, epochs=3), "openai", tokens="sampled"
        )
        quote = prepared.offer("openai").quote
        assert quote.expected_usd is not None and quote.tokens_from is TokensFrom.SAMPLED
        with pytest.raises(OverBudget):
            ft.preflight(prepared, "openai", max_cost_usd=(quote.expected_usd + quote.high_usd) / 2)


def test_what_is_not_counted_has_no_price(large: str, home: Path) -> None:
    train = ["--train", large, "--model", "gpt-4.1-mini", "--provider", "openai", "--json"]
    done = CliRunner().invoke(app, ["quote", "--tokens", "none", *train])
    [quote] = json.loads(done.stdout)
    assert done.exit_code == 1 and not list((home / "home").rglob("*.counts"))
    assert quote["tokens_from"] == "none" and "tokens were not counted" in quote["unavailable"]
    with Orchestrator() as ft, pytest.raises(UsageError, match="exact, sampled, none"):
        ft.quote(JobSpec(model="gpt-4.1-mini", train=large), "openai", tokens="guessed")


def test_nothing_is_submitted_whose_price_was_not_looked_at(
    large: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sandbox-secret")
    with Orchestrator() as ft:
        prepared = ft.prepare(JobSpec(model="gpt-4.1-mini", train=large), "openai", tokens="none")
        with pytest.raises(UsageError, match="tokens were not counted"):
            ft.submit(prepared, "openai")
        assert ft.runs() == []


@pytest.mark.slow
def test_data_check_tells_the_interval(large: str) -> None:
    def told(how: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["data", "check", large, "--for", "openai", "--tokens", how, "--json"])
        return json.loads(done.stdout)["report"]["files"][0]

    none, sampled, exact = told("none"), told("sampled"), told("exact")
    assert (none["tokens"], none["tokens_from"]) == (None, "none")
    assert sampled["tokens_from"] == "sampled" and exact["tokens_from"] == "exact"
    assert sampled["tokens_low"] < exact["tokens"] < sampled["tokens_high"] < 1.2 * exact["tokens"]
