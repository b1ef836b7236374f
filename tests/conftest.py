"""What the whole suite shares: a Postgres server, the table of counts at its end, and a look for keys in all
that it wrote."""

from __future__ import annotations

import gc
import importlib
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tests import forking, key_scan, sources
from tests.cells import ALL_OF_IT
from tests.logged import Logged
from tests.paths import ROOT
from tests.postgres_server import Postgres, postgres_binaries
from tests.workers import Nursery

from orchestrate.local.run import importing

os.environ["PYTHON_KEYRING_BACKEND"] = "keyring.backends.null.Keyring"
"""No test looks into the keyring of the one who runs it."""

os.environ["ORCHESTRATE_TODAY"] = "2026-11-26"
"""Models are retired and prices end: the tests hold on any day."""

os.environ.setdefault("OMP_NUM_THREADS", "1")
"""As `make` has it, before torch is loaded: more threads take three times as long for tiny models, and an
interpreter of its own is then started for each worker."""

settings.register_profile("busy machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy machine")

for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        # By nohup or in a script's background these are ignored, and so by every command that a test starts.
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

REPEATED = (
    # folder, the variants of its tests
    ("tests/faults/", {"postgres"}),
    ("tests/contract/", {"nebius", "crusoe"}),
    ("tests/unit/places/", {"sky", "hf-jobs", "kuberay", "anyscale", "s3"}),
)
"""What shows the same of another database, host or place as of the first one: it runs in the slow half."""

HOSTS = {"together", "fireworks"}
"""The second and the third host: of a fault's test without other variants the fast half has the first host's.
Where it has more, each host is met there with some of them (`tests/cells.py`)."""

loading = ExitStack()

LONG = (
    "tests/unit/places/test_ray_workers.py",
    "tests/e2e/test_wheel.py",
    "tests/e2e/test_examples.py",
    "tests/faults/local/test_workers.py",
    "tests/unit/places/test_anyscale.py",
    "tests/e2e/test_readme.py",
    "tests/faults/local/test_resume.py",
    "tests/e2e/test_demo.py",
    "tests/cli/test_tuned_models.py",
    "tests/faults/local/test_processes.py",
    "tests/unit/places/test_ray.py",
    "tests/faults/test_soak.py",
    "tests/unit/sandbox/training/test_training.py",
    "tests/e2e/test_tutorial.py",
    "tests/unit/places/test_hf_jobs.py",
    "tests/unit/serving/test_gguf.py",
)
"""What takes minutes, the longest first: each worker begins with some of it, so that none is left with it, or
with a second making of what its tests share, when the others have ended."""


COLUMNS = ("cases", "runs", "jobs", "alarms", "lost", "doubled")


class Table:
    """Adds up what the fault tests counted: jobs on the hosts against runs in the store."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, int]] = {}
        self.backends: dict[str, set[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "jobs":
                self.add(value)  # type: ignore[arg-type]

    def add(self, value: dict[str, Any]) -> None:
        row = self.rows.setdefault(value["fault"], dict.fromkeys(COLUMNS, 0))
        row["cases"] += 1
        for column in COLUMNS[1:]:
            row[column] += value.get(column, 0)
        self.backends.setdefault(value["fault"], set()).add(value["where"])

    @property
    def total(self) -> dict[str, int]:
        return {column: sum(row[column] for row in self.rows.values()) for column in COLUMNS}

    def lines(self) -> list[str]:
        width = max(map(len, self.rows)) + 2
        head = f"{'':<{width}}" + "".join(f"{column:>9}" for column in COLUMNS)
        lines = [f"{head}  backends"]
        for fault, row in [*sorted(self.rows.items()), ("all", self.total)]:
            numbers = "".join(f"{row[column]:>9}" for column in COLUMNS)
            lines.append(
                f"{fault:<{width}}{numbers}  {' '.join(sorted(self.backends.get(fault, ())))}".rstrip()
            )
        return lines


class Seconds:
    """Adds up what the tests of a file took, with what they share: `LONG` is kept by it."""

    def __init__(self) -> None:
        self.of_files: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.of_files[file] = self.of_files.get(file, 0.0) + report.duration

    def lines(self) -> list[str]:
        most = sorted(self.of_files.items(), key=lambda found: -found[1])[:40]
        return [f"{seconds:>8.1f}s {file}" for file, seconds in most if seconds >= 5]


class Failures:
    """Prints each failure when it happens: a run that is broken off has named those that it found."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if report.failed and terminal is not None:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else report.longreprtext
            terminal.write_line(f"\nFAILED {report.nodeid} ({report.when}): {why[:600]}")


class Keys:
    """Fails the session when a key is in a file that it wrote, or in what a test printed or logged."""

    def __init__(self) -> None:
        self.scan: key_scan.Scan | None = None
        self.told: list[tuple[str, str]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.told += [(f"{report.nodeid} ({name})", text) for name, text in report.sections]

    def look(self, session: pytest.Session) -> None:
        factory = session.config._tmp_path_factory  # type: ignore[attr-defined]
        self.scan = key_scan.session_scan(ROOT / "tests", [factory.getbasetemp()])
        for where, text in self.told:
            self.scan.text(where, text)


@pytest.fixture(scope="session", autouse=True)
def nobodys_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads keys and pins of the one who runs it, or leaves counts and caches in their home."""
    home = tmp_path_factory.mktemp("nobody")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "HF_DATASETS_CACHE", "WANDB_CACHE_DIR"):
            patch.setenv(name, str(home / name.lower()))
        yield


@pytest.fixture
def logged() -> Iterator[Logged]:
    root, made = logging.getLogger(), Logged()
    before = root.level
    root.addHandler(made)
    root.setLevel(logging.DEBUG)
    yield made
    root.setLevel(before)
    root.removeHandler(made)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no Postgres on this machine (pg_ctl on the PATH or under /usr/lib/postgresql)")
    server = Postgres(binaries)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def nursery() -> Nursery:
    return Nursery()


@pytest.fixture(scope="module")
def quick_python() -> Iterator[None]:
    """What the tests of a module start is forked as well, not only what commands start."""
    with forking.quick():
        yield


def pytest_configure(config: pytest.Config) -> None:
    if (
        getattr(config.option, "dist", "no") == "no"
    ):  # the tests are found here, not in workers of this process
        # Until all is imported: hardly anything of it is garbage, and no compiler of torch is needed. scipy
        # is, by some tests.
        importlib.import_module("scipy")
        loading.enter_context(importing())
    if not hasattr(config, "workerinput"):  # in each worker of xdist too there is a session, but no end of it
        config.pluginmanager.register(Table(), "jobs-table")
        config.pluginmanager.register(Seconds(), "seconds")
        config.pluginmanager.register(Keys(), "key-scan")
        config.pluginmanager.register(Failures(config), "failures")
    else:
        forking.shared = config.workerinput["python"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """For all tests the workers are forked from one that has imported what they need. Not where coverage has
    to see the imports."""
    everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if everything and not getattr(config.option, "cov_source", None):
        for spec in specs:
            spec.python = f"{forking.python()} -m tests.tester"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["python"] = forking.python()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files whose tests are all slow where those are not asked for: each worker would import them."""
    if collection_path.suffix != ".py" or not (
        marked := ALL_OF_IT.search(collection_path.read_text("utf-8"))
    ):
        return None
    return True if f"not {marked[1]}" in config.option.markexpr else None


@pytest.hookimpl(tryfirst=True)  # before those are left out that are not asked for
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):  # takes seconds to start
            item.add_marker("slow")
        if not isinstance(item, pytest.Function):
            continue
        given = item.callspec.params.values() if hasattr(item, "callspec") else ()
        named = {str(getattr(value, "name", value)) for value in given}
        repeated = any(item.nodeid.startswith(folder) and named & them for folder, them in REPEATED)
        another = item.nodeid.startswith("tests/faults/") and named and named <= HOSTS
        if repeated or another or "postgres" in item.fixturenames:
            item.add_marker("slow")


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In an order in which the share that each worker is first given, an equal number of tests, begins with
    its part of `LONG`, and one of them with all tests that read the sources, which are parsed once then."""
    hands: list[list[pytest.Item]] = [[] for _ in range(workers)]
    rest: list[pytest.Item] = []
    of_files = {file: list[pytest.Item]() for file in LONG}
    for item in items:
        reads_sources = getattr(getattr(item, "module", None), "sources", None) is sources
        file = item.nodeid.partition("::")[0]
        (hands[-1] if reads_sources else of_files.get(file, rest)).append(item)
    for number, found in enumerate(of_files.values()):
        turn, place = divmod(number, workers)  # there and back: the longest with the shortest
        hands[place if turn % 2 == 0 else workers - 1 - place] += found
    rest.reverse()
    ordered: list[pytest.Item] = []
    for left, hand in zip(range(workers, 0, -1), hands, strict=True):
        share = (len(items) - len(ordered)) // left
        ordered += hand + [rest.pop() for _ in range(min(share - len(hand), len(rest)))]
    return ordered + rest[::-1]


@pytest.hookimpl(tryfirst=True)  # before a worker tells what it has found
def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there by now is there to the end: no collection of garbage has to look through it."""
    if workers := getattr(session.config, "workerinput", {}).get("workercount"):
        session.items[:] = dealt(session.items, workers)
    gc.freeze()
    loading.close()
    gc.set_threshold(10_000, 20, 20)  # few tests make much garbage, and a thirtieth of the time looked for it


@pytest.fixture
def usual_collection() -> Iterator[None]:
    """Garbage is looked for as often as where nobody has said otherwise: for tests that measure memory."""
    rare = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*rare)


@pytest.hookimpl(trylast=True)  # after the workers of xdist have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A job that is lost or doubled, or a key in a file, fails the session whatever its tests said."""
    table, keys = (session.config.pluginmanager.get_plugin(name) for name in ("jobs-table", "key-scan"))
    if table is None or keys is None:
        return
    keys.look(session)
    if table.total["lost"] or table.total["doubled"] or keys.scan.hits:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    names = ("jobs-table", "key-scan", "seconds")
    table, keys, seconds = map(config.pluginmanager.get_plugin, names)
    if seconds is not None and (lines := seconds.lines()):
        terminalreporter.section("files that took longest, of all workers together")
        for line in lines:
            terminalreporter.write_line(line)
    if table is not None and table.rows:
        terminalreporter.section("jobs under faults")
        for line in table.lines():
            terminalreporter.write_line(line)
    if keys is not None and keys.scan is not None and (keys.scan.files or keys.scan.hits):
        scan = keys.scan
        terminalreporter.section("keys in what was written")
        terminalreporter.write_line(
            f"{len(scan.hits)} in {scan.files:,} files of {scan.bytes / 1e6:,.0f} MB; "
            f"{scan.kept} key files and sandboxes hold theirs"
        )
        for hit in scan.hits[:20]:
            terminalreporter.write_line(f"  {hit}")
