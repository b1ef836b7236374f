"""Keys in the system's keyring: the real package, with a backend that keeps its file where the test says."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Cli, Result
from tests.cli.test_keys_and_hosts import KEY, stranger  # noqa: F401  a fixture

Keyring = Callable[..., Result]


@pytest.fixture
def ring(cli: Cli, tmp_path: Path) -> Keyring:
    def run(*arguments: str, backend: str = "keyrings.alt.file.PlaintextKeyring", **others: str) -> Result:
        stdin = others.pop("stdin", None)
        env = {"PYTHON_KEYRING_BACKEND": backend, "XDG_DATA_HOME": str(tmp_path / "ring")} | others
        return cli(*arguments, stdin=stdin, **env)

    return run


def holding(folder: Path, key: str) -> list[Path]:
    """The files in which the key is, as it is or in base64."""
    forms = [key.encode(), *(base64.b64encode(key.encode()[i:])[4:-4] for i in range(3))]
    return [
        file
        for file in folder.rglob("*")
        if file.is_file() and any(form in file.read_bytes() for form in forms)
    ]


def listed(result: Result, name: str = "openai") -> tuple[str | None, str | None]:
    row = next(row for row in result.json if row["backend"] == name)
    return row["key"], row["source"]


@pytest.mark.slow
def test_a_key_in_the_keyring_is_used_and_is_in_no_other_file(
    ring: Keyring,
    stranger: tuple[str, list[str]],  # noqa: F811
    tmp_path: Path,
) -> None:
    url, asked = stranger
    unmeant = ring("keys", "set", "openai", "--keyring", stdin=KEY + "\n", OPENAI_BASE_URL=url)
    assert unmeant.code == 2 and "unset OPENAI_BASE_URL" in unmeant.err and holding(tmp_path, KEY) == []
    stored = ring("keys", "set", "openai", "--keyring", stdin=KEY + "\n")
    assert stored.code == 0 and "stored in " in stored.err and KEY not in stored.err
    assert listed(ring("keys", "list", "--json")) == ("sk-...ij", "keyring")
    assert ring("keys", "trust", "openai", url).code == 0
    assert ring("recover", "-p", "openai", OPENAI_BASE_URL=url).code == 0
    assert set(asked) == {f"Bearer {KEY}"}
    for command in ("doctor", "runs", "sync", "providers"):
        done = ring(command, OPENAI_BASE_URL=url)
        assert KEY not in done.out + done.err
    [kept] = holding(tmp_path, KEY)
    assert kept.is_relative_to(tmp_path / "ring")

    assert ring("keys", "remove", "openai").err.strip() == "openai: removed"
    assert listed(ring("keys", "list", "--json")) == (None, None)
    assert holding(tmp_path, KEY) == []
    assert "has a key called openai" in " ".join(ring("keys", "remove", "openai").err.split())


@pytest.mark.slow
def test_the_environment_and_the_file_go_before_the_keyring(ring: Keyring, tmp_path: Path) -> None:
    ring("keys", "set", "together", stdin="tgp-in-the-file-0123456789\n")
    ring("keys", "set", "together", "--keyring", stdin="tgp-in-the-ring-0123456789\n")
    assert listed(ring("keys", "list", "--json"), "together") == ("tgp...89", "keyring")
    assert not holding(tmp_path, "tgp-in-the-file-0123456789"), "an old key does not hide the new one"
    ring("keys", "set", "together", stdin="tgp-again-in-the-file-4567\n")
    assert listed(ring("keys", "list", "--json"), "together") == ("tgp...67", "key file")
    shown = ring("keys", "list", "--json", TOGETHER_API_KEY="tgp-of-the-environment-xy")
    assert listed(shown, "together") == ("tgp...xy", "TOGETHER_API_KEY")
    ring("keys", "remove", "together")
    assert listed(ring("keys", "list", "--json"), "together") == (None, None)


def test_a_secret_of_the_keyring_that_is_no_backends(ring: Keyring, tmp_path: Path) -> None:
    secret = "whsec_YSBzZWNyZXQgb2YgdGhlIHRlc3Rz"
    assert ring("keys", "set", "notify-webhook", "--keyring", stdin=secret + "\n").code == 0
    [kept] = holding(tmp_path, secret)
    assert kept.is_relative_to(tmp_path / "ring")
    done = ring("sync", "--json", ORCHESTRATE_NOTIFY_URL="http://127.0.0.1:9/hook")
    assert done.code == 0, done.err


def test_a_sandboxs_key_is_none_for_the_keyring(ring: Keyring, tmp_path: Path) -> None:
    refused = ring("keys", "set", "openai", "--keyring", stdin="sandbox-tests\n")
    assert refused.code == 2 and "leave out --keyring" in refused.err
    assert not (tmp_path / "ring").exists()


def test_without_a_keyring_the_key_is_not_kept(ring: Keyring, tmp_path: Path) -> None:
    refused = ring(
        "keys", "set", "openai", "--keyring", stdin=KEY + "\n", backend="keyring.backends.fail.Keyring"
    )
    assert refused.code == 3 and "NoKeyringError" in refused.err and "--keyring" in refused.err
    assert holding(tmp_path, KEY) == []
    shown = ring("keys", "list", "--json", backend="keyring.backends.fail.Keyring")
    assert listed(shown) == (None, None), "and reading goes on without it"
