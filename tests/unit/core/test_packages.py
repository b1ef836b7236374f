"""What is installed but too old says so at its first use, with the command that mends it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.unit.settings.test_config import env_of

from orchestrate import sandbox
from orchestrate.core import needed, require_recent
from orchestrate.errors import MissingExtra, SetupError
from orchestrate.local.run.launcher import PACKAGES, require_packages
from orchestrate.profile import built_in
from orchestrate.providers import registry
from orchestrate.settings import config

Old = Callable[[str], Requirement]
SDKS = {kind: one.sdk for kind, one in built_in().items() if one.sdk}


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Old:
    """Puts a distribution of version 0.0.1 before the installed one, and returns what pyproject asks for."""

    def put(name: str) -> Requirement:
        folder = tmp_path / "site" / f"{name.replace('-', '_')}-0.0.1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        require_recent.cache_clear()
        return next(r for r in map(Requirement, requires("orchestrate-ft") or ()) if r.name == name)

    return put


def command(wanted: Requirement) -> str:
    return f"pip install '{wanted.name}{wanted.specifier}'"


@pytest.mark.parametrize("kind", SDKS)
def test_an_old_sdk_is_refused_at_the_first_request(kind: str, old: Old, tmp_path: Path) -> None:
    wanted = old(str(SDKS[kind]))
    env = env_of(tmp_path, **{f"{kind.upper()}_API_KEY": "sk-of-the-tests-0123456789"})
    provider = registry.make(kind, config.load(env=env, cwd=tmp_path))
    with pytest.raises(SetupError, match=r"0\.0\.1 is installed") as refused:
        list(provider.list())
    assert refused.value.fix == command(wanted)


@pytest.mark.parametrize("package", PACKAGES)
def test_an_old_package_of_the_engine_is_refused_before_a_worker_starts(package: str, old: Old) -> None:
    wanted = old(package)
    with pytest.raises(SetupError) as refused:
        require_packages()
    assert refused.value.fix == command(wanted)


def test_an_old_server_is_refused_before_the_sandbox_starts(old: Old) -> None:
    wanted = old("starlette")
    with pytest.raises(SetupError) as refused, sandbox.running(train=False):
        pass
    assert refused.value.fix == command(wanted)


def test_an_absent_package_names_its_extra() -> None:
    with pytest.raises(MissingExtra) as absent, needed("data", "reading", "no-such-package"):
        import no_such_package  # noqa: F401
    assert absent.value.fix == "pip install 'orchestrate-ft[data]'"


def test_what_is_recent_is_let_through() -> None:
    require_recent.cache_clear()
    for package in [*map(str, SDKS.values()), *PACKAGES]:
        require_recent(package)
