"""A repository that was cloned, and every command that only reads, run in it by a user with keys in the
environment: nothing of the repository runs, nothing is asked, and no file outside of it changes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.paths import ROOT
from typer.testing import CliRunner, Result

from orchestrate import settings
from orchestrate.cli import app
from orchestrate.errors import ProjectNotTrusted
from orchestrate.places.kinds._skypilot.asking import Bridge
from orchestrate.settings import trust

READS = (
    "runs --json",
    "show last",
    "events last",
    "check finetune.yaml -p openai,together,local",
    "check finetune.yaml -p sky",
    "plan finetune.yaml",
    "quote finetune.yaml",
    "spending",
    "sync",
    "recover",
    "deployments",
    "providers",
    "queue ls",
    "keys list",
    "prices list",
    "compare last",
    "mcp --read-only",
    "ui --read-only",
)
MAY_READ = ("models qwen3", "data check train.jsonl", "data inspect train.jsonl", "prices check")
"""What needs no settings answers, and does nothing else."""
KEYS = {
    "OPENAI_API_KEY": "sk-users-own-openai-key-0123456789",
    "TOGETHER_API_KEY": "tgp-users-own-together-key-0123456789",
    "AWS_SECRET_ACCESS_KEY": "aws-users-own-secret-0123456789",
    "NPM_TOKEN": "npm-users-own-token-0123456789",
    "MINE_API_KEY": "mine-users-own-key-0123456789",
    "WANDB_API_KEY": "wandb-users-own-key-0123456789",
    "ANYSCALE_CLI_TOKEN": "ash-users-own-token-0123456789",
    "PGPASSWORD": "the-users-own-database-password",
}
TRICKS = {
    "a program": '[hosts.sky.options]\npython = "bin/evil.sh"\n',
    "a program by its full path": '[hosts.sky.options]\npython = "<repo>/bin/evil.sh"\n',
    "a program of a second place": '[hosts.mine]\ntype = "sky"\noptions = {python = "bin/evil.sh"}\n',
    "a program, dotted": 'hosts.sky.options.python = "bin/evil.sh"\n',
    "a place alone": "[hosts.sky]\n",
    "a place's clouds": '[hosts.sky.options]\ninfra = "k8s/production"\n',
    "a place's server": '[hosts.sky.options]\nserver = "<trap>"\n',
    "a store that asks for the password": 'store = "postgresql://attacker@<host>/db"\n',
    "a store in a folder of the user": 'store = "sqlite:///<victim>/runs.sqlite3"\n',
    "a home in a folder of the user": 'home = "<victim>"\n',
    "a home above": 'home = "../victim"\n',
    "a home of the local engine": '[local]\nhome = "<victim>"\n',
    "a home of this machine": '[hosts.local.options]\nhome = "<victim>"\n',
    "a home of a host": '[hosts.openai.options]\nhome = "<victim>"\n',
    "a cloud's key": '[hosts.mine]\ntype = "together"\nbase_url = "<trap>"\n'
    'key_variable = "AWS_SECRET_ACCESS_KEY"\n',
    "a token of another tool": '[hosts.mine]\ntype = "openai"\nbase_url = "<trap>/v1"\n'
    'key_variable = "NPM_TOKEN"\n',
    "a key by the host's name": '[hosts.mine]\ntype = "openai"\nbase_url = "<trap>/v1"\n',
    "a key by the host's name alone": '[hosts.mine]\ntype = "openai"\n',
    "a host's key, here": '[hosts.openai]\nbase_url = "<trap>/v1"\n',
    "a host's key, elsewhere": '[hosts.openai]\nbase_url = "https://localhost:<port>/v1"\n',
    "another key for a host": '[hosts.openai]\nkey_variable = "AWS_SECRET_ACCESS_KEY"\n',
    "headers": '[hosts.openai.options]\nheaders = {X-Api = "a"}\n',
    "a deployment": '[hosts.openai.options]\ndeployment = "x"\n',
    "an API version": '[hosts.openai.options]\napi_version = "x"\n',
    "another organization": '[hosts.openai]\norganization = "org-attacker"\n',
    "another project": '[hosts.openai]\nproject = "proj-attacker"\n',
    "another account": '[hosts.fireworks]\naccount_id = "attacker"\n',
    "a described host": '[hosts.mine]\ntype = "openai-compatible"\nprofile = "azure"\n'
    'base_url = "<trap>/v1"\n',
    "a cluster": '[hosts.ray.options]\naddress = "<trap>"\n',
    "a depot of the user": '[hosts.ray.options]\ndepot = "file://<victim>"\n',
    "a depot elsewhere": '[hosts.hf-jobs.options]\ndepot = "s3://attacker/runs"\n',
    "variables for workers": '[hosts.ray.options]\npass_env = ["AWS_SECRET_ACCESS_KEY"]\n',
    "an image": '[hosts.hf-jobs.options]\nimage = "attacker/image"\n',
    "a user's cluster": '[hosts.kuberay.options]\ncontext = "production"\n',
    "secrets of a cluster": '[hosts.kuberay.options]\nsecret = "production"\n',
    "an image of a cluster": '[hosts.kuberay.options]\nimage = "attacker/image"\n',
    "a console": '[hosts.anyscale]\nbase_url = "<trap>"\n',
    "a cloud": '[hosts.anyscale.options]\ncloud = "attacker"\n',
    "a price of nothing for a machine": "[hosts.ray.options]\nusd_per_hour = 0\n",
    "a webhook": '[gateway]\nwebhook_url = "<trap>"\n',
    "a folder of uploads": '[gateway]\nfiles = "<victim>"\n',
    "models of the gateway": '[gateway.models.default]\nbackend = "openai"\nmodel = "gpt-4.1"\n',
    "many at once": 'home = "<victim>"\nstore = "postgresql://attacker@<host>/db"\n'
    '[hosts.sky.options]\npython = "bin/evil.sh"\n[hosts.openai]\nbase_url = "<trap>/v1"\n',
}
"""What may not be set without trust, and what it would do."""
BESIDE = {
    ".sky.yaml": "api_server:\n  endpoint: <trap>\n",
    ".env": "OPENAI_BASE_URL=<trap>\n",
    "keys.toml": 'openai = "sk-attacker"\n',
    "hosts/evil.yaml": "base_url: <trap>\n",
    "wandb/settings": "[default]\nbase_url = <trap>\n",
    "pip.conf": "[global]\nindex-url = <trap>\n",
    **{
        f"{name}.py": "import os; os.system('bin/evil.sh')\n"
        for name in ("sitecustomize", "usercustomize", "msgspec", "typer", "gc", "json", "torch")
    },
    "orchestrate/__init__.py": "import os; os.system('bin/evil.sh')\n",
}
SPECS: dict[str, dict[str, Any]] = {
    "a program of a place": {"provider_options": {"sky": {"python": "bin/evil.sh"}}},
    "a depot": {"provider_options": {"ray": {"depot": "file://<victim>", "pass_env": ["NPM_TOKEN"]}}},
    "a server for the W&B key": {
        "wandb": {"project": "p"},
        "provider_options": {"together": {"wandb_base_url": "<trap>"}},
    },
    "a grader": {
        "method": {
            "type": "rft",
            "grader": {"type": "python", "source": "import os\ndef grade(a, b):\n    os.system('<evil>')\n"},
        }
    },
    "a template": {"chat_template": "{{ cycler.__init__.__globals__.os.popen('<evil>') }}"},
    "files by a file": {"train": "reference://x::refs.json"},
    "a notebook's server": {"train": "jupyter://<host>/x"},
    "a model with code": {"model": "./model"},
    "an override": {"overrides": {"together": {"provider_options": {"together": {"wandb_key": "<trap>"}}}}},
}


@dataclass
class Watch:
    """What this process did while it was watched."""

    programs: list[str] = field(default_factory=list[str])
    connections: list[str] = field(default_factory=list[str])


_watching: list[Watch] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    if event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        _watching[-1].programs.append(repr(arguments))
    elif event in ("socket.connect", "socket.getaddrinfo") and not isinstance(arguments[-1], str):
        _watching[-1].connections.append(repr(arguments))


sys.addaudithook(_hook)


@contextmanager
def watched() -> Iterator[Watch]:
    _watching.append(Watch())
    try:
        yield _watching[-1]
    finally:
        _watching.pop()


@dataclass
class Repository:
    folder: Path
    victim: Path
    port: int
    accepted: list[Any]
    env: dict[str, str]

    def filled(self, text: str) -> str:
        host = f"127.0.0.1:{self.port}"
        evil = self.folder / "bin" / "evil.sh"
        named = {"repo": self.folder, "victim": self.victim, "port": self.port, "evil": evil, "host": host}
        for name, value in {**named, "trap": f"http://{host}"}.items():
            text = text.replace(f"<{name}>", str(value))
        return text

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.filled(text))

    def run(self, line: str) -> Result:
        return CliRunner().invoke(app, line.split(), env=self.env)

    def outside(self) -> dict[str, Any]:
        """All that the user has, but for the repository."""
        kept: dict[str, Any] = {}
        for path in sorted(self.victim.parent.rglob("*")):
            if not path.is_relative_to(self.folder):
                data = path.read_bytes() if path.is_file() else None
                kept[str(path)] = (path.stat().st_mode, data)
        return kept

    def harmed(self) -> str:
        if (self.victim.parent / "PWNED").exists():
            return "a program of the repository ran"
        return f"{len(self.accepted)} connections" if self.accepted else ""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    folder, victim = tmp_path / "repository", tmp_path / "victim"
    for path in (folder / "bin", folder / "model", victim / "data"):
        path.mkdir(parents=True)
    victim.chmod(0o755)
    (victim / "data" / "photo").write_text("of the user")
    evil = folder / "bin" / "evil.sh"
    evil.write_text(f"#!/bin/sh\nenv > {tmp_path}/PWNED\n")
    evil.chmod(0o755)
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (folder / "train.jsonl").write_text(f"{json.dumps(row)}\n" * 12)
    (folder / "finetune.yaml").write_text("model: qwen3-8b\ntrain: train.jsonl\nepochs: 1\n")
    (folder / "refs.json").write_text(
        json.dumps({"version": 1, "refs": {"x": [f"file://{folder}/train.jsonl"]}})
    )
    (folder / "model" / "config.json").write_text(
        '{"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "x"}'
    )
    (folder / "model" / "evil.py").write_text("import os; os.system('bin/evil.sh')\n")
    monkeypatch.chdir(folder)
    for name in [*os.environ]:
        if name.endswith(("_API_KEY", "_BASE_URL")) or name == settings.MORE_NAMES:
            monkeypatch.delenv(name)
    env = {
        **KEYS,
        "HOME": str(tmp_path),
        "ORCHESTRATE_KEYS": str(tmp_path / "config" / "keys.toml"),
        "XDG_DATA_HOME": str(tmp_path / "data"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
    }
    accepted: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as trap:

        def accept() -> None:
            try:
                while True:
                    connection, where = trap.accept()
                    accepted.append(where)
                    connection.close()
            except OSError:
                pass

        threading.Thread(target=accept, daemon=True).start()
        yield Repository(folder, victim, trap.getsockname()[1], accepted, env)
        trap.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("trick", "reads"),
    [(trick, [READS[(4 * n + k) % len(READS)] for k in range(4)]) for n, trick in enumerate(TRICKS)],
    ids=TRICKS,
)
def test_commands_refuse_what_is_not_trusted_before_anything(
    repository: Repository, trick: str, reads: list[str]
) -> None:
    _refused_by(repository, trick, reads, ["data check train.jsonl"])


@pytest.mark.slow
@pytest.mark.parametrize("trick", TRICKS)
def test_every_command_refuses_what_is_not_trusted_before_anything(
    repository: Repository, trick: str
) -> None:
    _refused_by(repository, trick, READS, MAY_READ)


def _refused_by(repository: Repository, trick: str, reads: Iterable[str], may_read: Iterable[str]) -> None:
    repository.write("orchestrate.toml", TRICKS[trick])
    before = repository.outside()
    with watched() as watch:
        for line in reads:
            done = repository.run(line)
            assert isinstance(done.exception, ProjectNotTrusted), (line, done.output, done.exception)
            error = done.exception
            assert error.files == (str(repository.folder / "orchestrate.toml"),) and error.settings
            assert error.fix is not None and "orchestrate keys trust --project" in error.fix
        for line in may_read:
            done = repository.run(line)
            assert done.exit_code in (0, 1) or isinstance(done.exception, ProjectNotTrusted), line
        doctor = repository.run("doctor --json")
    [told] = [check for check in json.loads(doctor.stdout) if check["check"] == "settings and store"]
    assert doctor.exit_code == 3 and "keys trust --project" in told["fix"]
    assert not watch.connections and not [p for p in watch.programs if "evil" in p]
    assert repository.outside() == before and not repository.harmed()


def test_a_file_above_is_found_and_trusted_like_one_beside(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = repository.folder / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    repository.write("orchestrate.toml", TRICKS["a program"])
    assert isinstance(repository.run("runs").exception, ProjectNotTrusted)
    told = repository.run("keys trust --project")
    assert told.exit_code == 0 and 'hosts.sky.options.python = "bin/evil.sh"' in told.output
    assert repository.run("runs").exit_code == 0
    repository.write("orchestrate.toml", TRICKS["a program by its full path"])
    assert isinstance(repository.run("runs").exception, ProjectNotTrusted), "a changed value needs new trust"
    assert not repository.harmed()


def test_names_and_values_add_no_line_to_what_is_shown(repository: Repository) -> None:
    line = "\\ntrusted until changed: nothing"
    repository.write("orchestrate.toml", f'home = "x{line}"\n[hosts."{line}"]\nbase_url = "<trap>"\n')
    refused, told = repository.run("runs").exception, repository.run("keys trust --project").output
    lines = [*str(refused).splitlines(), *told.splitlines()]
    assert isinstance(refused, ProjectNotTrusted) and len(lines) > 3
    assert not [one for one in lines if one.startswith("trusted until changed: nothing")]


def test_what_is_trusted_is_listed_without_secrets(repository: Repository) -> None:
    repository.write("orchestrate.toml", 'store = "postgresql://me:hunter2hunter2@db.example/runs"\n')
    told = repository.run("keys trust --project").output
    assert 'store = "postgresql://***@db.example/runs"' in told and "hunter2" not in told


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_starts_nothing_and_asks_nobody(repository: Repository, name: str) -> None:
    spec = {"model": "qwen3-8b", "train": "train.jsonl", "epochs": 1, **SPECS[name]}
    repository.write("finetune.yaml", json.dumps(spec))
    with watched() as watch:
        for line in ("check", "plan", "quote"):
            done = repository.run(f"{line} finetune.yaml -p openai,together,fireworks,local,ray")
            assert done.exit_code in (0, 1, 2, 3), (line, done.output)
    assert not watch.connections and not [p for p in watch.programs if "evil" in p]
    assert not repository.harmed()


def test_files_beside_are_nothing_to_it(repository: Repository) -> None:
    for name, text in BESIDE.items():
        repository.write(name, text)
    with watched() as watch:
        for line in (
            "runs",
            "check finetune.yaml -p together",
            "quote finetune.yaml -p together",
            "keys list",
        ):
            done = repository.run(line)
            assert done.exit_code == 0, (line, done.output)
    assert not watch.connections and not watch.programs and not repository.harmed()


@pytest.mark.slow
@pytest.mark.parametrize("trick", ["a program", "many at once", "none"])
def test_a_pull_request_is_checked_without_running_it(repository: Repository, trick: str) -> None:
    for name, text in BESIDE.items():
        repository.write(name, text)
    if trick != "none":
        repository.write("orchestrate.toml", TRICKS[trick])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**os.environ, **repository.env, "PATH": path, "SPEC": "finetune.yaml", "PROVIDER": "all"}
    summary = repository.victim.parent / "summary"
    env |= {"GITHUB_STEP_SUMMARY": str(summary), "HF_HUB_OFFLINE": "1", "FAIL_ABOVE_USD": "1000"}
    env |= {"PULL_REQUEST": "1", "GH_TOKEN": "ghs-users-own-token-0123456789"}
    tools = repository.victim.parent / "tools"
    tools.mkdir()
    (tools / "gh").write_text(f'#!/bin/sh\necho "$*" >> {tools}/told\necho \'{{"comments": []}}\'\n')
    (tools / "gh").chmod(0o755)
    env["PATH"] = f"{tools}:{env['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "ci" / "pull_request.sh")], env=env, capture_output=True, text=True, check=False
    )
    assert not repository.harmed(), done.stderr
    assert ("keys trust --project" in summary.read_text()) == (trick != "none")
    assert "pr comment 1" in (tools / "told").read_text(), "all of the script was run"
    assert done.returncode in (0, 1)


def test_a_bridge_gets_no_key_and_reads_no_file_of_the_folder(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trusted program is given what clouds are reached with, and no API key. SkyPilot's client reads the
    file .sky.yaml of the folder in which it runs."""
    for name, value in {**KEYS, "KUBECONFIG": "/of/the/user"}.items():
        monkeypatch.setenv(name, value)
    asks = repository.folder / "bin" / "asks.sh"
    asks.write_text(
        f"#!{sys.executable}\nimport json, os, sys\nsys.stdin.readline()\n"
        'print(json.dumps({"ok": [os.getcwd(), dict(os.environ)]}), flush=True)\n'
    )
    asks.chmod(0o755)
    bridge = Bridge("bin/asks.sh", server=None)
    try:
        folder, given = bridge.ask("machines")
    finally:
        bridge.close()
    assert Path(folder) != repository.folder and not (Path(folder) / ".sky.yaml").exists()
    assert given["KUBECONFIG"] == "/of/the/user"
    lost = {name for name in KEYS if name in given}
    assert lost == {"AWS_SECRET_ACCESS_KEY"}, "of the hosts none; a cloud's own is what it is there for"


def test_the_demo_trusts_what_it_wrote_and_no_home_that_lay_there(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, lay_there in (("new", False), ("brought", True)):
        folder = repository.folder / name
        if lay_there:
            (folder / "home").mkdir(parents=True)
        assert repository.run(f"demo --files-only {folder}").exit_code == 0
        monkeypatch.chdir(folder)
        assert isinstance(repository.run("runs").exception, ProjectNotTrusted) == lay_there


def test_trust_is_kept_where_the_user_keeps_keys(repository: Repository) -> None:
    repository.write("orchestrate.toml", TRICKS["a home above"])
    shutil.rmtree(repository.victim)
    assert repository.run("keys trust --project").exit_code == 0
    listed = Path(repository.env["ORCHESTRATE_KEYS"]).with_name("trusted.json")
    assert listed.stat().st_mode & 0o777 == 0o600
    assert not trust.Trusted(listed).lacks((repository.folder / "orchestrate.toml",))
