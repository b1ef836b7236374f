"""What a project's file may set without the user's trust: each setting that there is, one by one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.settings.test_config import env_of

from orchestrate.errors import ProjectNotTrusted
from orchestrate.profile import BY_SDK, OPTIONS, built_in, described, places, profile
from orchestrate.providers.local import rented_machines
from orchestrate.settings import config, trust
from orchestrate.settings.hosts import HOST_FIELDS

HARMLESS = {
    "log_level": "DEBUG",
    "queue.openai": 3,
    "local.threads": 2,
    "local.device": "cpu",
    "local.gpu_memory_gib": 24,
    "hosts.openai.timeout_s": 5,
    "hosts.openai.options.retry_budget_s": 5,
    "hosts.openai.options.multipart_bytes": 9,
    "hosts.openai.options.part_bytes": 9,
    "hosts.together.timeout_s": 5,
    "hosts.together.options.retry_budget_s": 5,
    "hosts.fireworks.timeout_s": 5,
    "hosts.fireworks.options.retry_budget_s": 5,
    "hosts.local.timeout_s": 5,
    "hosts.local.options.threads": 2,
    "hosts.local.options.device": "cpu",
    "hosts.local.options.gpu_memory_gib": 24,
}
SHOWN = {
    "budget_usd": 5,
    "local.prices": "x",
    **{f"hosts.{name}.options.prices": "x" for name in ("openai", "together", "fireworks", "local")},
}
"""Figures, which need trust before anything that bills."""


def settings_there_are() -> Iterator[str]:
    """Dotted names, each as a file may write it."""
    yield from ("home", "store", "budget_usd", "log_level", "queue.openai")
    yield from (
        f"gateway.{name}" for name in ("organization", "files", "webhook_url", "models.default.model")
    )
    own = set(HOST_FIELDS)
    kinds = [*built_in(), *described(), *places(), "one-of-a-plug-in"]
    for name in kinds:
        yield f"hosts.{name}"
        yield from (f"hosts.{name}.{field}" for field in sorted(own - {"options"}))
        known = None if name == "one-of-a-plug-in" else profile(name).options
        taken = OPTIONS | BY_SDK | {*rented_machines.OPTIONS} if known is None else OPTIONS | known
        yield from (f"hosts.{name}.options.{option}" for option in sorted(taken))
    yield from (f"local.{option}" for option in sorted(OPTIONS | (profile("local").options or set())))


def table(dotted: str, value: Any = "x") -> dict[str, Any]:
    first, _, rest = dotted.partition(".")
    if first == "hosts" and "." not in rest and value == "x":
        return {first: {rest: {}}}
    return {first: table(rest, value) if rest else value}


def test_each_setting_that_is_not_named_needs_trust_before_anything(tmp_path: Path) -> None:
    file = tmp_path / "orchestrate.toml"
    file.touch()
    seen: set[str] = set()
    for name in settings_there_are():
        project, seen = trust.Project(file, table(name)), {*seen, name}
        named = {*project.closed, *project.figures}
        if name in HARMLESS or name in {f"hosts.{kind}" for kind in built_in()}:
            assert not named, name
        else:
            assert named == {name} and (name in project.figures) == (name in SHOWN), name
    assert {*HARMLESS, *SHOWN} <= seen, "each is a setting that there is"


def test_what_needs_no_trust_is_used(tmp_path: Path) -> None:
    text = "".join(f"{name} = {value!r}\n" for name, value in HARMLESS.items())
    (tmp_path / "orchestrate.toml").write_text(text + "budget_usd = 5\n")
    found = config.load(env=env_of(tmp_path), cwd=tmp_path)
    assert (found.log_level, found.budget_usd, found.queue["openai"]) == ("DEBUG", 5, 3)
    assert found.host("together").timeout_s == 5


@pytest.mark.parametrize(
    "text",
    [
        '["hosts"."sky.timeout_s"."options"]\npython = "bin/evil.sh"\n',
        '[hosts.openai.options.retry_budget_s]\nheaders = {x = "y"}\n',
        '[hosts.openai."options.prices"]\nx = 1\n',
        'hosts = {sky = {options = {python = "bin/evil.sh"}}}\n',
        'hosts.sky.options.python = "bin/evil.sh"\n',
        '[hosts."openai "]\nbase_url = "http://127.0.0.1:1"\n',
        '[hosts.OpenAI]\nbase_url = "http://127.0.0.1:1"\n',
        "[queue.openai]\nx = 1\n",
    ],
)
def test_no_way_of_writing_opens_a_setting(tmp_path: Path, text: str) -> None:
    file = tmp_path / "orchestrate.toml"
    file.write_text(text)
    assert trust.Project(file, config.read_toml(file)).closed


def trusts(tmp_path: Path, file: Path) -> bool:
    """Whether the file's store is used."""
    try:
        found = config.load(env=env_of(tmp_path), cwd=file.parent)
    except ProjectNotTrusted as error:
        assert error.files == (str(file),) and error.settings == ("store",)
        return False
    assert found.store_url == "sqlite:////elsewhere"
    return True


def test_trust_is_for_the_file_as_it_is_where_it_is(tmp_path: Path) -> None:
    listed = trust.trusted_in(tmp_path / "pins.json")
    project, other = tmp_path / "project", tmp_path / "other"
    for folder in (project, other):
        folder.mkdir()
    file, link = project / "orchestrate.toml", other / "orchestrate.toml"
    file.write_text('store = "sqlite:////elsewhere"\n')
    assert not trusts(tmp_path, file)
    listed.add((file,))
    assert trusts(tmp_path, file)
    link.symlink_to(file)
    assert not trusts(tmp_path, link), "its relative paths begin in another folder"
    named = {"ORCHESTRATE_CONFIG": str(link)}
    assert config.load(env=env_of(tmp_path, **named), cwd=tmp_path).config_named, "named by the user"
    file.write_text('store = "sqlite:////elsewhere"\nlog_level = "INFO"\n')
    assert not trusts(tmp_path, file)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_file_of_another_user_sets_nothing_without_trust(tmp_path: Path) -> None:
    file = tmp_path / "orchestrate.toml"
    file.write_text('log_level = "DEBUG"\n')
    config.load(env=env_of(tmp_path), cwd=tmp_path)
    os.chown(file, 65534, 65534)
    with pytest.raises(ProjectNotTrusted, match="log_level"):
        config.load(env=env_of(tmp_path), cwd=tmp_path)
    trust.trusted_in(tmp_path / "pins.json").add((file,))
    config.load(env=env_of(tmp_path), cwd=tmp_path)
