"""A repository that was cloned, and every command run in it by a user with keys in the environment: nothing
of the repository runs, nothing is asked, and no file outside of it is read or changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests import command
from tests.cli.test_help_pages import pages
from tests.paths import ROOT
from typer.testing import CliRunner, Result

from orchestrate import JobSpec, settings
from orchestrate.cli import app
from orchestrate.commands import EXAMPLES
from orchestrate.errors import ProjectNotTrusted
from orchestrate.places.kinds._skypilot import Bridge
from orchestrate.profile import built_in
from orchestrate.settings import config, trust
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store

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

    def of_victim(self) -> dict[str, Any]:
        return {name: kept for name, kept in self.outside().items() if name.startswith(str(self.victim))}

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
@pytest.mark.parametrize("trick", ["a program", "a home above", "a host's key, here", "many at once"])
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
    repository.write("orchestrate.toml", 'store = "sqlite:////elsewhere/runs.sqlite3"\n')
    assert 'store = "sqlite:////elsewhere/runs.sqlite3"' in repository.run("keys trust --project").output


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


# -- every command ------------------------------------------------------------------------------------------


ODD = {
    ".git/config": "[core]\n\tfsmonitor = bin/evil.sh\n\tsshCommand = bin/evil.sh\n\tpager = bin/evil.sh\n",
    ".git/hooks/post-checkout": "#!/bin/sh\nbin/evil.sh\n",
    ".gitattributes": "* filter=evil diff=evil\n",
    "conftest.py": "import os; os.system('bin/evil.sh')\n",
    "pyproject.toml": '[project]\nname = "evil"\nversion = "1"\n'
    '[project.entry-points."orchestrate.providers"]\nopenai = "evil:Provider"\n',
    "evil-1.dist-info/METADATA": "Metadata-Version: 2.1\nName: evil\nVersion: 1\n",
    "evil-1.dist-info/entry_points.txt": "[orchestrate.providers]\nopenai = evil:Provider\nmine = evil:P\n",
    "evil.py": "import os; os.system('bin/evil.sh')\n",
    "evil.pth": "import os; os.system('bin/evil.sh')\n",
    "python": "#!/bin/sh\nbin/evil.sh\n",
    "bwrap": "#!/bin/sh\nbin/evil.sh\n",
    "nvidia-smi": "#!/bin/sh\nbin/evil.sh\n",
    ".netrc": "default login attacker password x\n",
    ".wandb": "x\n",
    "wandb_settings.json": '{"base_url": "<trap>"}\n',
    "mlruns/0/meta.yaml": "artifact_location: file://<victim>\n",
    "rates.yaml": "- {provider: openai, model: gpt-4.1, train: 0}\n",
    "--config=orchestrate.toml": "x\n",
    "--to": "x\n",
    "tickets.jsonl": '{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": '
    '{"url": "<trap>/i.png"}}, {"type": "image_url", "image_url": {"url": "file://<victim>/data/photo"}}]}, '
    '{"role": "assistant", "content": "\\u001b]0;x\\u0007<img src=\\"<trap>\\">"}]}\n',
    "support-bot.yaml": "name: ../../victim/x\nmodels: {a: <trap>, b: ./model}\n",
    "rubric.md": "{{ cycler.__init__.__globals__.os.popen('bin/evil.sh') }}\n",
    "model/tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["evil.T", "evil.T"]}, '
    '"chat_template": "{{ cycler.__init__.__globals__.os.popen(\'<evil>\') }}"}\n',
    "model/pytorch_model.bin": "cos\nsystem\n(S'bin/evil.sh'\ntR.",
    "model/adapter_config.json": '{"base_model_name_or_path": "<trap>", "auto_mapping": {"x": "evil.T"}}',
    "model/adapter_model.bin": "cos\nsystem\n(S'bin/evil.sh'\ntR.",
}
"""More that lies beside, under names that programs look for."""
OPENLY = (
    'log_level = "INFO"\n[queue]\nopenai = 999999999999\n[local]\nthreads = 1000000\n'
    'device = "$(bin/evil.sh)"\n[hosts.openai]\ntimeout_s = 1e300\n'
)
"""What may be set without trust, as badly as it can be."""
LINKS = {
    **dict.fromkeys(("out.jsonl", "unique.jsonl", "preferences.jsonl", "report.html"), "data/photo"),
    **dict.fromkeys(("home", "runs", "local", "queue"), "data"),
}
"""Files that the examples write, and folders that nothing has named: they lead to the user's own."""
PROGRAMS = {"nvidia-smi", "uname", "gcc", "cc", "ld", "ldconfig", "rocm-smi"}
"""What libraries and our own look at the machine start, found by PATH or by their full path."""
ASKS, LONGEST_S = 3, 20
"""Requests and seconds for a command that does what it was asked to do, then Ctrl-C."""
SECRET = "of-the-user-and-of-nobody-else"

Case = tuple[dict[str, str], str]
"""Files of the repository, and a command."""


def run_each(given: list[str]) -> None:
    """In a process of its own: each command over its files, and what it did, in lines of JSON. Programs and
    connections fail; so does whoever would listen, and ends."""
    from orchestrate.cli import main

    victim, told, listed = given
    cases: list[Case] = json.loads(Path(listed).read_text())
    out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    repo, asked, begun = str(Path.cwd()), [0], [time.monotonic()]
    number = 0

    def tell(*what: Any) -> None:
        os.write(out, json.dumps([number, *what], default=repr).encode() + b"\n")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in STARTS:
            tell("starts", *arguments[:2])
            raise PermissionError(event)
        if event in SENDS and not isinstance(
            place := arguments[event in ("socket.connect", "socket.sendto")], str
        ):
            tell("asks", place)
            raise OSError(event)
        if event == "socket.getaddrinfo":
            tell("asks", arguments[0])
            asked[0] += 1
            raise OSError(event)
        if event == "socket.bind" and isinstance(arguments[1], tuple):
            raise PermissionError(event)
        if event == "exec" and arguments[0].co_filename.startswith(repo):
            tell("runs", arguments[0].co_filename)
        if event in ("open", "sqlite3.connect", "ctypes.dlopen") or event.startswith(("os.", "shutil.")):
            for path in arguments[:2]:
                if isinstance(path, str | bytes) and os.path.realpath(os.fsdecode(path)).startswith(victim):
                    tell("outside", event, path)

    sys.addaudithook(hook)
    threading.Thread(target=_end_who_waits, args=(asked, begun), daemon=True).start()
    for number, (files, line) in enumerate(cases):  # noqa: B007  `tell` has it
        for name, text in files.items():
            Path(name).write_text(text)
        sys.argv = shlex.split(line)
        asked[0], begun[0] = 0, time.monotonic()
        tell("done", _code_of(main))


_within = [False]


def _code_of(main: Callable[[], None]) -> Any:
    """A Ctrl-C that comes as the command has ended is nothing to the next one."""

    def interrupted(*_: object) -> None:
        if _within[0]:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupted)
    try:
        try:
            _within[0] = True
            main()
        except SystemExit as ended:
            return ended.code
        finally:
            _within[0] = False
    except KeyboardInterrupt:
        _within[0] = False
        return 130


STARTS = {"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "webbrowser.open"}
SENDS = {"socket.connect", "socket.sendto"}


def _end_who_waits(asked: list[int], begun: list[float]) -> None:
    """Ctrl-C for a command that serves or follows runs, or asks again."""
    since, before = time.monotonic(), 0.0
    while True:
        time.sleep(0.2)
        now = time.monotonic()
        if (used := time.process_time()) > before + 0.02:
            since, before = now, used
        if now > since + 1 or asked[0] >= ASKS or now > begun[0] + LONGEST_S:
            os.kill(os.getpid(), signal.SIGINT)
            since = now


@dataclass
class Acts:
    """What one command did."""

    line: str
    code: Any = "no end"
    starts: list[Any] = field(default_factory=list[Any])
    asks: list[Any] = field(default_factory=list[Any])
    runs: list[Any] = field(default_factory=list[Any])
    outside: list[Any] = field(default_factory=list[Any])


def acts_of(repository: Repository, cases: list[Case]) -> list[Acts]:
    """Raises `AssertionError` for anything that no command may do."""
    (repository.victim / "secret").write_text(SECRET)
    for name, text in (BESIDE | ODD).items():
        path = repository.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(repository.filled(text))
    for name, place in LINKS.items():
        (repository.folder / name).symlink_to(repository.victim / place)
    kept = repository.victim.parent / "config"
    kept.mkdir()
    told, listed = kept / "told", kept / "cases"
    listed.write_text(json.dumps([[{n: repository.filled(t) for n, t in f.items()}, c] for f, c in cases]))
    before = repository.of_victim()
    ended = command.run(
        [str(repository.victim), str(told), str(listed)],
        cwd=repository.folder,
        env=repository.env | {name: os.environ[name] for name in ("PATH", "PYTHON_KEYRING_BACKEND")},
        program=run_each,
    )
    acts = [Acts(line) for _, line in cases]
    for number, kind, *what in map(json.loads, told.read_text().splitlines()):
        if kind == "done":
            acts[number].code = what[0]
        else:
            getattr(acts[number], kind).append(what)
    assert repository.of_victim() == before and not repository.harmed()
    assert SECRET.encode() not in ended.out + ended.err
    hosts = {str(urlsplit(one.url).hostname) for one in built_in().values() if one.url}
    for one in acts:
        assert not one.runs and not one.outside, one
        assert {host for [host] in one.asks} <= hosts, one
        for program, words, *_ in one.starts:
            ours = words[1:3] == ["-P", "-m"] and words[3].startswith("orchestrate.")
            assert ours or Path(program).name in PROGRAMS, one
            assert not str(shutil.which(program)).startswith(str(repository.folder)), one
    assert all(one.code != "no end" for one in acts), (acts, ended.err)
    return acts


def lines() -> list[str]:
    """The example of each command, and each group by itself."""
    own = pages()
    groups = [name for name, page in own.items() if getattr(page, "commands", None)]
    assert own.keys() - groups <= EXAMPLES.keys()
    return [*EXAMPLES.values(), *(f"orchestrate {name}" for name in groups)]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_command_of_the_program_refuses_what_is_not_trusted(repository: Repository, part: int) -> None:
    """Each trick meets a third of the commands, each command a third of the tricks."""
    cases: list[Case] = [
        ({"orchestrate.toml": text}, line)
        for n, text in enumerate(list(TRICKS.values())[part::4])
        for line in lines()[n % 3 :: 3]
    ]
    acts = acts_of(repository, cases)
    refused = {one.line for one in acts if one.code == 3}
    assert {line for line in lines() if line.split()[1] in ("submit", "ui", "worker", "sync")} <= refused
    assert not [one for one in acts if one.asks]


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
@pytest.mark.parametrize("with_runs", [False, True])
def test_every_command_amid_tricks_that_need_no_trust(
    repository: Repository, with_runs: bool, part: int
) -> None:
    if with_runs:
        made = config.load(
            env=repository.env, cwd=repository.victim, home=repository.victim.parent / "data" / "orchestrate"
        )
        with Store.open(made.store_url) as store:
            for name in ("fireworks", "openai"):
                spec = JobSpec(model="qwen3-8b", train="train.jsonl", suffix="x")
                store.runs.create(Intent(spec=spec, provider=name, dataset_digest="d" * 64, host="h"))
    acts_of(repository, [({"orchestrate.toml": OPENLY}, line) for line in lines()[part::3]])


@pytest.mark.slow
def test_every_command_that_takes_a_spec_meets_each_hostile_spec(repository: Repository) -> None:
    takes = [EXAMPLES[name] for name, page in pages().items() if "spec" in {p.name for p in page.params}]
    assert len(takes) >= 7
    cases: list[Case] = []
    for spec in SPECS.values():
        text = json.dumps({"model": "qwen3-8b", "train": "train.jsonl", "epochs": 1, **spec})
        cases += [({"finetune.yaml": text}, line) for line in takes]
    acts_of(repository, cases)
