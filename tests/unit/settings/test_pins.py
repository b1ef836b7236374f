"""A key goes to the host that it was first used with, and to no other until its owner says so."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.settings.test_config import env_of

from orchestrate.errors import ConfigError, KeyElsewhere, ProjectNotTrusted
from orchestrate.profile import profile
from orchestrate.settings import config, trust
from orchestrate.settings.hosts import Pins, origin

KEY = "sk-proj-0123456789abcdefghij"
OPENAI = "https://api.openai.com"


@pytest.fixture
def pins(tmp_path: Path) -> Pins:
    return Pins(tmp_path / "config" / "pins.json")


def host(tmp_path: Path, name: str = "openai", **env: str) -> config.HostConfig:
    return config.load(env=env_of(tmp_path, **env), cwd=tmp_path).host(name)


def test_the_first_host_is_kept_and_another_refused_until_it_is_allowed(pins: Pins) -> None:
    assert pins.require(KEY, "openai", f"{OPENAI}/v1"), "the first use"
    assert not pins.require(KEY, "openai", f"{OPENAI}:443/v2")
    for url in ("https://evil.example/v1", "http://api.openai.com/v1", f"{OPENAI}:8443/v1",
                "https://api.openai.com.evil.example/v1"):  # fmt: skip
        with pytest.raises(KeyElsewhere) as caught:
            pins.require(KEY, "openai", url)
        assert OPENAI in caught.value.message and "nothing was sent" in caught.value.message
        assert f"orchestrate keys trust openai {origin(url)}" in str(caught.value.fix)
    assert pins.require("another" + KEY, "openai", "https://evil.example/v1"), "each key has its own hosts"
    pins.allow(KEY, "https://proxy.example/v1")
    assert not pins.require(KEY, "openai", "https://proxy.example/else")
    assert pins.hosts(KEY) == (OPENAI, "https://proxy.example")


def test_the_file_is_private_and_says_nothing_about_the_key(pins: Pins) -> None:
    pins.require(KEY, "openai", OPENAI)
    text = pins.path.read_text()
    assert KEY not in text and KEY[8:] not in text
    assert pins.path.stat().st_mode & 0o777 == 0o600
    assert pins.path.parent.stat().st_mode & 0o777 == 0o700
    other = Pins(pins.path.with_name("other.json"))
    other.require(KEY, "openai", OPENAI)
    assert json.loads(text)["pins"].keys() != json.loads(other.path.read_text())["pins"].keys()


def test_hosts_of_one_owner_share_their_keys(pins: Pins) -> None:
    family = profile("together").origins
    pins.require(KEY, "together", "https://api.together.ai")
    assert not pins.require(KEY, "together", "https://api.together.xyz/v1", family=family)
    with pytest.raises(KeyElsewhere):
        pins.require(KEY, "together", "https://api.together.xyz/v1")
    with pytest.raises(KeyElsewhere):
        pins.require(KEY, "together", "https://api.together.example", family=family)


def test_a_configured_host_knows_its_owners_other_addresses(tmp_path: Path) -> None:
    env = env_of(tmp_path, TOGETHER_API_KEY=KEY)
    host = config.load(env=env, cwd=tmp_path).host("together")
    assert host.require_key().reveal() == KEY
    moved = config.load(env={**env, "TOGETHER_BASE_URL": "https://api.together.xyz/v1"}, cwd=tmp_path)
    assert moved.host("together").require_key().reveal() == KEY
    other = config.load(env={**env, "TOGETHER_BASE_URL": "https://api.together.example"}, cwd=tmp_path)
    with pytest.raises(KeyElsewhere):
        other.host("together").require_key()


def test_of_many_processes_with_different_hosts_one_ties_the_key(pins: Pins) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom orchestrate.errors import KeyElsewhere\n"
        "from orchestrate.settings.hosts import Pins\nsys.stdin.read()\n"
        "try: print(Pins(Path(sys.argv[1])).require(sys.argv[2], 'openai', sys.argv[3]))\n"
        "except KeyElsewhere as error: print(error.known)"
    )
    urls = [f"https://host{i}.example" for i in range(6)]
    words = [[sys.executable, "-c", code, str(pins.path), KEY, url] for url in urls]
    started = [subprocess.Popen(w, stdin=-1, stdout=-1, text=True) for w in words]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()  # all that are up go on at once
    told = [process.stdout.read().strip() for process in started if process.stdout is not None]
    assert [process.wait() for process in started] == [0] * 6
    for process in started:
        assert process.stdout is not None
        process.stdout.close()
    [winner] = pins.hosts(KEY)
    assert sorted(told) == sorted(["True", *[f"('{winner}',)"] * 5])


@pytest.mark.slow
def test_many_processes_that_allow_at_once_lose_none(pins: Pins) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom orchestrate.settings.hosts import Pins\n"
        "Pins(Path(sys.argv[1])).allow(sys.argv[2], sys.argv[3])"
    )
    urls = [f"https://host{i}.example" for i in range(6)]
    words = [[sys.executable, "-c", code, str(pins.path), KEY, url] for url in urls]
    assert [p.wait() for p in [subprocess.Popen(w) for w in words]] == [0] * 6
    assert pins.hosts(KEY) == tuple(urls)


@pytest.mark.parametrize("text", ["", "{", '{"salt": 5}', '{"salt": "xyz"}', '{"salt": "00", "pins": []}'])
def test_a_broken_file_is_refused_with_the_way_out(pins: Pins, text: str) -> None:
    pins.path.parent.mkdir()
    pins.path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        pins.require(KEY, "openai", OPENAI)
    assert f"rm {pins.path}" in str(caught.value.fix)


def test_where_nothing_can_be_kept_each_use_is_the_first() -> None:
    nowhere = Pins(Path("/proc/nowhere/pins.json"))
    assert nowhere.require(KEY, "openai", OPENAI)
    assert nowhere.require(KEY, "openai", OPENAI)


@pytest.mark.parametrize(
    ("table", "variable"),
    [
        ('[hosts.openai]\nbase_url = "https://evil.example/v1"\n', "OPENAI_API_KEY"),
        # The file chooses the name of the host and of the variable as well.
        ('[hosts.git]\nbase_url = "https://evil.example"\nkey_variable = "GIT_TOKEN"\n', "GIT_TOKEN"),
        ('[hosts.aws]\ntype = "openai"\nbase_url = "https://evil.example"\n', "AWS_API_KEY"),
    ],
)  # fmt: skip
def test_a_projects_file_cannot_lead_a_key_away(tmp_path: Path, table: str, variable: str) -> None:
    (tmp_path / "orchestrate.toml").write_text(table)
    name = table.split(".")[1].split("]")[0]
    with pytest.raises(ProjectNotTrusted):
        host(tmp_path, name, **{variable: KEY})
    trust.trusted_in(tmp_path / "pins.json").add((tmp_path / "orchestrate.toml",))
    found = host(tmp_path, name, **{variable: KEY})
    with pytest.raises(KeyElsewhere, match=r"orchestrate\.toml"):
        found.require_key()
    assert found.pins is not None and not found.pins.exists(), "a refusal ties nothing"
    Pins(found.pins).allow(KEY, "https://evil.example")  # `orchestrate keys trust`
    assert host(tmp_path, name, **{variable: KEY}).require_key().reveal() == KEY


def test_an_environment_that_names_the_host_is_believed_once(tmp_path: Path) -> None:
    env = {"OPENAI_API_KEY": KEY, "OPENAI_BASE_URL": "https://proxy.example/v1"}
    assert host(tmp_path, **env).require_key().reveal() == KEY
    with pytest.raises(KeyElsewhere, match=r"only be sent to https://proxy\.example"):
        host(tmp_path, OPENAI_API_KEY=KEY).require_key()


def test_this_machine_may_be_named_by_a_trusted_file_but_not_after_another_host(tmp_path: Path) -> None:
    (tmp_path / "orchestrate.toml").write_text('[hosts.openai]\nbase_url = "http://127.0.0.1:4000/v1"\n')
    with pytest.raises(ProjectNotTrusted):
        host(tmp_path, OPENAI_API_KEY=KEY)
    trust.trusted_in(tmp_path / "pins.json").add((tmp_path / "orchestrate.toml",))
    assert host(tmp_path, OPENAI_API_KEY=KEY).require_key().reveal() == KEY
    used = KEY + "-used"
    assert Pins(tmp_path / "pins.json").require(used, "openai", OPENAI)
    with pytest.raises(KeyElsewhere):
        host(tmp_path, OPENAI_API_KEY=used).require_key()


def test_a_key_of_the_sandbox_goes_to_any_sandbox_and_is_tied_to_nothing(tmp_path: Path) -> None:
    for port in (1, 2):
        url = f"http://127.0.0.1:{port}/v1"
        found = host(tmp_path, OPENAI_API_KEY="sandbox-abcdef0123456789", OPENAI_BASE_URL=url)
        assert found.require_key().reveal().startswith("sandbox-")
    assert not (tmp_path / "pins.json").exists()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://API.OpenAI.com/v1", OPENAI),
        ("https://[::1]:8443/x", "https://[::1]:8443"),
        ("http://127.0.0.1:80", "http://127.0.0.1"),
        ("http://127.0.0.1:443", "http://127.0.0.1:443"),
    ],
)
def test_origins(url: str, expected: str) -> None:
    assert origin(url) == expected


@pytest.mark.parametrize(
    "url",
    ["https://user:secret@h.example/v1", "https://h.example/v1?key=x", "https://h.example/#x", "https:///v1",
     "ftp://h.example", "https://h.example:0/", "file:///etc/passwd"],
)  # fmt: skip
def test_a_base_url_is_scheme_host_and_path(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        host(tmp_path, OPENAI_BASE_URL=url)
    assert "secret" not in caught.value.message
