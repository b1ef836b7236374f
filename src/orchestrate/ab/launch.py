"""Run experiments from the command line: find their models, serve the proxy, save reports."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrate.ab.evidence import users_for as users_for
from orchestrate.ab.experiment import Experiment
from orchestrate.ab.plan import read_plan
from orchestrate.ab.plan import recorded_sometimes as recorded_sometimes
from orchestrate.ab.proxy import USER_HEADER, Proxy, Upstream
from orchestrate.errors import OrchestrateError, ProviderError, UsageError
from orchestrate.http import web
from orchestrate.profile import this_machine
from orchestrate.providers.base import Chats, Serves, capability
from orchestrate.providers.chat import at_chat, model_at
from orchestrate.reports import experiments as pages
from orchestrate.runs import serving
from orchestrate.runs.hosting.deployment import used
from orchestrate.runs.tracked import TrackedRun, tracked
from orchestrate.serving.server import keys
from orchestrate.serving.tuned import served_base
from orchestrate.settings import Secret
from orchestrate.store import RUN_PREFIX
from orchestrate.types import Arm, ExperimentPlan, ExperimentReport

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrate.workspace import Workspace

_log = logging.getLogger(__name__)
ARMS: tuple[Arm, Arm] = ("base", "tuned")


@dataclass(frozen=True, kw_only=True)
class ABTerms:
    """Options of a proxy. `names` are additional host names that it accepts, `origins` are origins of
    websites that may send requests, and `every_s` is the number of seconds between automatic evaluations of
    the rule."""

    host: str = web.LOOPBACK
    port: int = 8000
    names: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    user_header: str = USER_HEADER
    timeout_s: float = 60.0
    auto: bool = False
    every_s: float = 60.0
    grace_s: float = 30.0


@dataclass(frozen=True)
class ABUp:
    """A running proxy."""

    url: str
    experiment: Experiment


def begun(
    ft: Workspace, plan: str, *, start: Callable[[ExperimentPlan], None] = lambda _: None
) -> Experiment:
    """Start or continue the experiment in a plan file, or open an existing one by name or id. `start` is
    called with the plan before a new experiment starts. If it raises an exception, the experiment does not
    start. Raises `UsageError` if the plan is invalid or the experiment is unknown. Errors while looking up
    the models of a new experiment propagate, because a started plan can't be corrected."""
    path = Path(plan).expanduser()
    if path.suffix.lower() not in (".yaml", ".yml") and not path.is_file():
        return Experiment.open(plan, ft.store)
    read = read_plan(path)
    if ft.store.experiments.named(read.name) is None:
        written = _written(read)
        here = [name for name in dict.fromkeys(written.values()) if _is_here(ft, name)]
        if here:
            serving.require_servable(ft, here)
        for arm, name in written.items():
            if name not in here:
                _elsewhere(ft, read, arm, name)
        start(read)
    return Experiment.begin(read, ft.store)


def found(ft: Workspace, name: str | None) -> list[Experiment]:
    """Return the experiment with this name or id, or all experiments, newest first."""
    if name is not None:
        return [Experiment.open(name, ft.store)]
    return [Experiment(ft.store, record) for record in ft.store.experiments.all()]


def table(report: ExperimentReport) -> RenderableType:
    """Format the report as a table for the terminal."""
    return pages.table(report)


def save(report: ExperimentReport, path: Path) -> Path:
    """Save the report as .html, .json or .txt, depending on the path's suffix. Raises `UsageError` for any
    other suffix."""
    return pages.save(report, path)


@contextmanager
def serve(
    ft: Workspace,
    experiment: Experiment,
    terms: ABTerms,
    *,
    accept_license: Sequence[str] = (),
    on_report: Callable[[ExperimentReport], None] = lambda _: None,
) -> Generator[ABUp]:
    """Serve an experiment's proxy, and the local runs that it forwards to, until the `with` block ends. If
    `terms.auto` is set, the rule is applied automatically, and `on_report` is called with a report after each
    action. Raises `UsageError` if other machines can reach the address and there are no keys. Errors while
    looking up the models propagate."""
    keys.bring_in(ft.settings.home, ft.store, by=ft.settings.made_by)
    clients = keys.Clients(ft.store, "serve")
    clients.require(terms.host, keys.NEW_KEY)
    with ExitStack() as ending:
        arms = _arms(ft, experiment.plan, ending, accept_license)
        proxy = Proxy(
            experiment,
            arms["base"],
            arms["tuned"],
            clients=clients,
            user_header=terms.user_header,
            timeout_s=terms.timeout_s,
        )
        app = proxy.app(names=terms.names, origins=terms.origins)
        serving_it = web.serving(app, host=terms.host, port=terms.port, grace_s=terms.grace_s, lifespan=True)
        url = ending.enter_context(serving_it)
        if terms.auto:
            ending.enter_context(_deciding(experiment, terms.every_s, on_report))
        yield ABUp(url, experiment)


@contextmanager
def _deciding(
    experiment: Experiment, every_s: float, on_report: Callable[[ExperimentReport], None]
) -> Generator[None]:
    """Evaluate the rule periodically in a thread."""
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(every_s):
            try:
                report = experiment.step()
            except OrchestrateError as error:
                _log.warning("could not evaluate the rule of %s: %s", experiment.plan.name, error)
                continue
            if report.applied:
                on_report(report)

    thread = threading.Thread(target=look, name="ab-rule", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


# -- the models --------------------------------------------------------------------------------------------


def _arms(
    ft: Workspace, plan: ExperimentPlan, ending: ExitStack, accept_license: Sequence[str]
) -> dict[Arm, Upstream]:
    """Return the server that each arm's requests are sent to. Models on this machine are served until
    `ending` closes."""
    written = _written(plan)
    here: dict[Arm, str] = {arm: written[arm] for arm in ARMS if _is_here(ft, written[arm])}
    places: dict[Arm, Upstream] = {}
    if here:
        names = list(dict.fromkeys(here.values()))
        terms = serving.ServerSettings(port=0)
        up = ending.enter_context(serving.serve(ft, names, terms, accept_license=accept_license))
        for arm, name in here.items():
            model = up.tuned[names.index(name)]
            key = None if up.key is None else Secret(up.key)
            asked = model.name if arm == "tuned" else served_base(model.base)
            places[arm] = Upstream(f"{up.url}/v1", asked, key)
    return {arm: places.get(arm) or _elsewhere(ft, plan, arm, written[arm]) for arm in ARMS}


def _written(plan: ExperimentPlan) -> dict[Arm, str]:
    return {"base": plan.base, "tuned": plan.tuned}


def _is_here(ft: Workspace, written: str) -> bool:
    """Return whether this is a run on this machine or a folder with weights."""
    if not written.startswith(RUN_PREFIX):
        return Path(written).expanduser().is_dir()
    return ft.record(written).provider == this_machine().kind


def _elsewhere(ft: Workspace, plan: ExperimentPlan, arm: Arm, written: str) -> Upstream:
    if written.startswith(RUN_PREFIX):
        return _on_host(ft, tracked(ft, written), arm)
    variable = plan.key_variables.get(arm)
    at = model_at(ft.settings, written, variable)
    keyless = variable is None and written.startswith(("http://", "https://"))
    config = at_chat(at.host)
    url = (config.base_url or "").rstrip("/")
    return Upstream(
        url, at.model, None if keyless else config.require_key(), _keeping_up(ft, at.host.name, at.model)
    )


def _keeping_up(ft: Workspace, host: str, model: str) -> Callable[[], None] | None:
    """Return a function that reports use of a deployment of this store, if the model's name belongs to
    one."""
    for one in ft.store.deployments.matching(provider=host, over=False):
        with suppress(ProviderError):
            endpoint = capability(ft.provider(host), Serves).endpoint(one.handle)
            if endpoint is not None and endpoint.model == model:
                return partial(used, ft, one.run_id, host)
    return None


def _on_host(ft: Workspace, handle: TrackedRun, arm: Arm) -> Upstream:
    handle.check()
    chat = capability(handle.provider, Chats).chat(handle.record.handle, base=arm == "base", max_tokens=1)
    if chat is None:
        raise UsageError(
            f"{handle.provider.name} does not serve this model through the chat completions API",
            fix=f"in the plan, set {arm} to https://ADDRESS/v1=MODEL",
        )
    config = at_chat(handle.provider.config)
    on_use = partial(used, ft, handle.id) if arm == "tuned" else None  # the base is the host's own, for all
    return Upstream((config.base_url or "").rstrip("/"), chat.model, config.require_key(), on_use)


def status_line(report: ExperimentReport) -> str:
    return f"{report.plan.name}: {pages.state_line(report)}"


def stop(experiment: Experiment, keep: Literal["base", "tuned"]) -> ExperimentReport:
    """End the experiment, and give all users the model `keep`. Raises `UsageError` if the experiment has
    already ended with this model."""
    if not experiment.stop(keep):
        raise UsageError(f"{experiment.plan.name} has already ended: {experiment.phases()[-1].why}")
    return experiment.report()
