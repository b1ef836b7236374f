"""The commands: the table of them all, and a module for each, which is imported only when it is run."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WORK = "Train"
_RUNS = "Follow runs"
_MODELS = "Use and judge tuned models"
_DATA = "Data, models and prices"
_SETUP = "Set up"

COMMANDS: tuple[tuple[str, str, str, str], ...] = (
    # panel, name, where it lives, one line of help
    (
        _WORK,
        "check",
        "training.planning:check",
        "All reasons for which a backend would refuse the data or the spec. Offline.",
    ),
    (
        _WORK,
        "plan",
        "training.planning:plan",
        "What each setting of the spec becomes on each backend. Offline.",
    ),
    (_WORK, "quote", "training.planning:quote", "What the run would cost on each backend. Offline."),
    (_WORK, "submit", "training.submit:submit", "Start the run on one or more backends. Spends money."),
    (_WORK, "rerun", "training.rerun:rerun", "Make a run once more, here or on another backend."),
    (_WORK, "sweep", "training.sweep:sweep", "Which settings are best? Trials within one budget."),
    (_WORK, "queue", "training.queue:app", "Runs that wait for a place, each submitted once, in order."),
    (_RUNS, "runs", "runs.listed:runs", "All runs, newest first."),
    (_RUNS, "ui", "servers.ui:ui", "Runs, money, data and new runs as pages in the browser."),
    (_RUNS, "show", "runs.tracked:show", "One run: status, settings, progress, cost."),
    (_RUNS, "watch", "runs.follow:watch", "Follow runs live until they end."),
    (_RUNS, "events", "runs.tracked:events", "What the host said about a run."),
    (_RUNS, "metrics", "runs.tracked:metrics", "Loss and other values by step."),
    (_RUNS, "log", "runs.logging:log", "Runs into MLflow, Weights & Biases or TensorBoard."),
    (_RUNS, "checkpoints", "runs.tracked:checkpoints", "Checkpoints of a run."),
    (_RUNS, "cancel", "runs.tracked:cancel", "End a run."),
    (_RUNS, "pause", "runs.tracked:pause", "Pause a run, where the backend can."),
    (_RUNS, "resume", "runs.tracked:resume", "Go on with a paused or interrupted run."),
    (_RUNS, "abandon", "runs.tracked:abandon", "Give a run up, with a reason; frees the budget."),
    (_RUNS, "sync", "runs.follow:sync", "Bring all runs up to date and settle lost answers."),
    (_RUNS, "worker", "runs.worker:worker", "Watch all runs for as long as wanted, and tell when they end."),
    (
        _RUNS,
        "spending",
        "runs.spending:spending",
        "Spent, committed, left; all that still bills, on every account.",
    ),
    (
        _RUNS,
        "import",
        "migration.importing:take",
        "Past jobs of an account become runs; what falls silent when.",
    ),
    (
        _MODELS,
        "migrate",
        "migration.migrate:migrate",
        "Move a tuned model to other backends, with proof of parity.",
    ),
    (_MODELS, "record", "data.record:record", "Keep a model's answers while it answers."),
    (_RUNS, "recover", "runs.worker:recover", "Rebuild a lost store from the hosts' lists."),
    (_MODELS, "eval", "evaluation.judge:evaluate", "Base against tuned on held-out rows."),
    (
        _MODELS,
        "regress",
        "evaluation.regress:regress",
        "Did it forget anything? Tuned against base, with margins.",
    ),
    (_MODELS, "compare", "evaluation.judge:compare", "Runs side by side: settings, cost, loss, scores."),
    (
        _MODELS,
        "review",
        "evaluation.review:review",
        "People say which answers are better, without knowing whose.",
    ),
    (_MODELS, "chat", "tuned.chat:chat", "Talk to a tuned model."),
    (_MODELS, "download", "tuned.chat:download", "Fetch a tuned model's files."),
    (
        _MODELS,
        "export",
        "tuned.exporting:export",
        "Write a tuned model out for another engine, and prove it.",
    ),
    (_MODELS, "merge", "tuned.exporting:merge", "Make one adapter of several of one base."),
    (_MODELS, "serve", "servers.serve:serve", "Serve tuned models by name behind the chat completions API."),
    (
        _MODELS,
        "ab",
        "evaluation.ab:app",
        "A tuned model against its base among real users, with a rule written before.",
    ),
    (_MODELS, "verify", "tuned.exporting:verify", "Prove that what is served is what was trained."),
    (_MODELS, "deploy", "tuned.hosting:deploy", "Put a tuned model on GPUs of its host. Bills by the hour."),
    (
        _MODELS,
        "undeploy",
        "tuned.hosting:undeploy",
        "Take a deployed model down, until its host shows that it is.",
    ),
    (_MODELS, "deployments", "tuned.hosting:deployments", "What is deployed, and what it costs."),
    (
        _DATA,
        "data",
        "data.group:app",
        "Inspect, check, convert, split, dedupe, preview, generate, review and judge training data.",
    ),
    (
        _MODELS,
        "gateway",
        "servers.gateway:app",
        "The fine-tuning API that existing code calls, over any backend: it changes its base URL.",
    ),
    (_SETUP, "mcp", "servers.mcp:mcp", "Tools for agents: look freely, spend only when a person agrees."),
    (
        _DATA,
        "advise",
        "training.advise:advise",
        "Prompt, few-shot, retrieval or tuning? With reasons. Offline.",
    ),
    (_DATA, "models", "catalog.models:app", "Base models and their names on each backend."),
    (_DATA, "prices", "catalog.prices:app", "Prices, their sources and their age."),
    (_SETUP, "demo", "setup.demo:demo", "The main job from end to end, on this machine. No key, no cost."),
    (_SETUP, "init", "setup.start:init", "Write a spec: a commented one, or one that fits your data."),
    (_SETUP, "keys", "setup.preparing:keys", "Set, list and remove API keys."),
    (_SETUP, "doctor", "setup.preparing:doctor", "Check this machine, the keys and the store."),
    (_SETUP, "providers", "setup.preparing:providers", "Backends, and what each of them can do."),
    (_SETUP, "plugins", "setup.preparing:plugins", "Backends of other packages, and their versions."),
    (
        _SETUP,
        "sandbox",
        "servers.sandbox:app",
        "Local stand-ins of the three hosts that really train. No key, no cost.",
    ),
    (_SETUP, "schema", "setup.schema:schema", "The JSON schema of what a command prints with --json."),
    (_SETUP, "local", "setup.local:app", "This machine as a backend: speed, memory."),
)


def load(target: str) -> Any:
    """The function of a command, or the typer of a group of them."""
    module, _, attribute = target.partition(":")
    return getattr(import_module(f"{__name__}.{module}"), attribute)
