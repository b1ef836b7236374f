from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

import pytest
from tests.paths import ROOT

from orchestrate import description
from orchestrate.errors import ConfigError, MissingKey
from orchestrate.profile import OPTIONS, built_in, described, places, profile
from orchestrate.providers.local import rented_machines
from orchestrate.settings import config


def env_of(tmp_path: Path, **more: str) -> dict[str, str]:
    return {
        "ORCHESTRATE_HOME": str(tmp_path / "home"),
        "ORCHESTRATE_KEYS": str(tmp_path / "keys.toml"),
        **more,
    }


def test_environment_goes_over_file_and_file_over_defaults(tmp_path: Path) -> None:
    (tmp_path / "orchestrate.toml").write_text(
        'home = "state"\nbudget_usd = 12.5\n[hosts.together]\nbase_url = "https://proxy.example/t"\n'
    )
    settings = config.load(
        env={"ORCHESTRATE_KEYS": str(tmp_path / "k")}, config_file=tmp_path / "orchestrate.toml"
    )
    assert settings.home == tmp_path / "state"
    assert settings.budget_usd == Decimal("12.5")
    assert settings.host("together").base_url == "https://proxy.example/t"
    assert settings.host("openai").base_url == "https://api.openai.com/v1"
    env = env_of(tmp_path, TOGETHER_BASE_URL="https://other.example/")
    over = config.load(env=env, config_file=tmp_path / "orchestrate.toml")
    assert over.home == tmp_path / "home"
    assert over.host("together").base_url == "https://other.example"


def test_every_folder_of_a_project_has_one_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    for store, expected in (
        ("sqlite:///a b%3F.sqlite3", f"sqlite:///{tmp_path}/a%20b%3F.sqlite3"),
        (f"sqlite:///{tmp_path}/c.sqlite3", f"sqlite:///{tmp_path}/c.sqlite3"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
    ):
        file = tmp_path / "orchestrate.toml"
        file.write_text(f'store = "{store}"\n')
        for folder, named in ((tmp_path, "orchestrate.toml"), (inner, "../orchestrate.toml")):
            monkeypatch.chdir(folder)
            loaded = config.load(env=env_of(tmp_path), config_file=Path(named))
            place = config.sqlite_path(loaded.store_url)
            assert (place.resolve() if place else loaded.store_url) == (
                config.sqlite_path(expected) or expected
            )
    by_user = config.load(
        env=env_of(tmp_path, ORCHESTRATE_STORE="sqlite:///d.sqlite3"), config_file=Path(named)
    )
    assert by_user.store_address == f"sqlite:///{inner}/d.sqlite3", "relative to where you are"


def test_the_nearest_file_upwards_is_used(tmp_path: Path) -> None:
    (tmp_path / "orchestrate.toml").write_text("budget_usd = 3\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    assert config.load(env=env_of(tmp_path), cwd=inner).config_file == tmp_path / "orchestrate.toml"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("colour = 1\n", "unknown field colour; allowed: budget_usd"),
        ("[hosts.openai]\nkey = 'x'\n", "unknown field hosts.openai.key"),
        ("budget_usd = 'lots'\n", "must be a number of US dollars"),
        ("budget_usd = nan\n", "must be a number of US dollars"),
        ("budget_usd = -1\n", "must be a number of US dollars"),
        ("log_level = 'loud'\n", "allowed: DEBUG, INFO"),
        ("[hosts.openai]\ntimeout_s = 'long'\n", "hosts.openai.timeout_s must be a number of seconds"),
        ("[hosts.openai]\nbase_url = 'http://[x'\n", "is not a valid URL"),
        ("broken = \n", "cannot be read"),
        ("[hosts.mine]\nbase_url = 'http://example.com/v1'\n", "unencrypted"),
        (
            "[hosts.ray.options]\ndepo = '/x'\n",
            r"unknown field hosts.ray.options.depo \(did you mean depot\?",
        ),
        (
            "[hosts.ray.options]\nimage = 'x'\n",
            "unknown field hosts.ray.options.image; allowed: address, depot",
        ),
        (
            "[hosts.mine]\ntype = 'fireworks'\n[hosts.mine.options]\nregion = 'eu'\n",
            "hosts.mine.options.region",
        ),
        ("[hosts.openai.options]\nwandb_api_key = 7\n", "unknown field hosts.openai.options.wandb_api_key"),
        ("[local]\nthread = 2\n", r"unknown field local.thread \(did you mean threads\?\)"),
    ],
)
def test_a_wrong_file_names_the_field(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "orchestrate.toml").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        config.load(env=env_of(tmp_path), cwd=tmp_path)


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("[hosts.fireworks.options]\naccount_id = 'a'\n", "set it directly in [hosts.NAME]"),
        ("[hosts.ray]\ndepot = '/x'\n", "set it in [hosts.NAME.options]"),
    ],
)
def test_a_field_in_the_wrong_table_is_told_its_own(tmp_path: Path, text: str, fix: str) -> None:
    (tmp_path / "orchestrate.toml").write_text(text)
    with pytest.raises(ConfigError) as refused:
        config.load(env=env_of(tmp_path), cwd=tmp_path)
    assert refused.value.fix == fix


READ = re.compile(r'(?<!provider_)options(?:\.get\(|\[)"(\w+)"|"(\w+)" in config\.options')
NOT_OF_A_HOST = {"temperature", "extra_body", "local", "trainingConfig", "gpu_type", "generators"}
"""Of a chat request, a spec and a session."""
OF_THE_PROGRAM = {"wandb_api_key", "wandb_base_url", "allow_grader_code", "gpu_capability"}
"""From the environment, a flag, or the machine that is rented; a file may not say them."""


def test_each_option_that_is_read_is_named_and_each_named_is_read() -> None:
    """What is read is taken from the sources: an option that no profile names could not be given."""
    source = ROOT / "src" / "orchestrate"
    files = [file for room in ("places", "providers") for file in (source / room).rglob("*.py")]
    files.append(source / "core" / "retries.py")
    found = {file: {one or other for one, other in READ.findall(file.read_text())} for file in files}
    read = set().union(*found.values(), rented_machines.OPTIONS) - NOT_OF_A_HOST - OF_THE_PROGRAM
    asked = {
        name
        for file in described().values()
        if (deployed := description.read(*file).deployment)
        for name in deployed.options
    }
    kinds = {*built_in(), *described(), *places()}
    named = OPTIONS.union(*(profile(kind).options or () for kind in kinds))
    assert read | asked | {"threads"} == named  # the threads are read in a loop
    for kind in places():
        own = found[source / "places" / "kinds" / f"{kind.replace('-', '_')}.py"]
        assert own <= OPTIONS | (profile(kind).options or set()), kind


def test_plain_http_is_for_loopback_only(tmp_path: Path) -> None:
    ok = config.load(env=env_of(tmp_path, OPENAI_BASE_URL="http://127.0.0.1:9/v1"), cwd=tmp_path)
    assert ok.host("openai").base_url == "http://127.0.0.1:9/v1"
    with pytest.raises(ConfigError):
        config.load(env=env_of(tmp_path, OPENAI_BASE_URL="http://10.0.0.7/v1"), cwd=tmp_path)


def test_keys_come_from_the_environment_before_the_file_and_never_show(tmp_path: Path) -> None:
    config.write_key(tmp_path / "keys.toml", "together", "tgp_v1_0123456789abcdef")
    settings = config.load(env=env_of(tmp_path), cwd=tmp_path)
    assert settings.host("together").require_key().reveal() == "tgp_v1_0123456789abcdef"
    assert "0123456789" not in repr(settings)
    over = config.load(env=env_of(tmp_path, TOGETHER_API_KEY="from-env-000000"), cwd=tmp_path)
    assert over.host("together").require_key().reveal() == "from-env-000000"
    with pytest.raises(MissingKey, match="OPENAI_API_KEY"):
        settings.host("openai").require_key()


def test_the_key_file_is_private_and_a_public_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.toml"
    config.write_key(path, "openai", 'with "quotes" and \\ and ü')
    assert path.stat().st_mode & 0o777 == 0o600
    assert config.read_keys(path) == {"openai": 'with "quotes" and \\ and ü'}
    config.write_key(path, "openai", None)
    assert config.read_keys(path) == {}
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="other users"):
        config.read_keys(path)


@pytest.mark.parametrize(
    ("url", "key", "sandbox"),
    [
        ("http://127.0.0.1:8765/v1", "sandbox-of-another-0123", True),
        ("http://127.0.0.1:8765/v1", "real-key", False),
        ("https://llm.example/v1", "sandbox-of-another-0123", False),
        (None, "sandbox-of-another-0123", False),
    ],
)
def test_a_sandbox_is_on_this_machine_and_has_a_key_of_one(
    tmp_path: Path, url: str | None, key: str, sandbox: bool
) -> None:
    given = {"OPENAI_API_KEY": key} | ({"OPENAI_BASE_URL": url} if url else {})
    settings = config.load(env=env_of(tmp_path, **given), cwd=tmp_path)
    assert (settings.host("openai").sandbox, settings.hosts.sandboxed) == (sandbox, sandbox)


def test_a_further_host_can_be_configured(tmp_path: Path) -> None:
    (tmp_path / "orchestrate.toml").write_text(
        '[hosts.mycloud]\ntype = "openai"\nbase_url = "https://llm.example/v1"\nkey_variable = "MYCLOUD"\n'
    )
    named = tmp_path / "orchestrate.toml"
    settings = config.load(env=env_of(tmp_path, MYCLOUD="mycloud-key-of-the-tests"), config_file=named)
    assert settings.extra_hosts == ["mycloud"]
    assert settings.host("mycloud").api_key == config.Secret("mycloud-key-of-the-tests")
    env = env_of(tmp_path, MYCLOUD_BASE_URL="https://other.example/v1")
    over = config.load(env=env, config_file=named)
    assert over.host("mycloud").base_url == "https://other.example/v1"


def test_the_largest_download_is_the_users_to_say(tmp_path: Path) -> None:
    def most(**env: str) -> int | None:
        return config.load(env=env, cwd=tmp_path, home=tmp_path).host("together").max_download_bytes

    assert most() is None
    assert most(ORCHESTRATE_MAX_DOWNLOAD_GB="1.5") == 1_500_000_000
    for wrong in ("no", "0", "-1", "nan", "inf"):
        with pytest.raises(ConfigError, match="ORCHESTRATE_MAX_DOWNLOAD_GB"):
            most(ORCHESTRATE_MAX_DOWNLOAD_GB=wrong)


def test_folders_of_an_older_home_are_closed_and_the_home_keeps_its_mode(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for folder in (home, home / "data", home / "of-the-user"):
        folder.mkdir()
        folder.chmod(0o755)
    config.load(env={}, cwd=tmp_path, home=home).make_home()
    modes = {f.name: f.stat().st_mode & 0o777 for f in (home, home / "data", home / "of-the-user")}
    assert modes == {"home": 0o755, "data": 0o700, "of-the-user": 0o755}
