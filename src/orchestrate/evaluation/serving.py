"""Where the answers of an evaluation come from: the host's endpoint, or the adapter on this machine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrate.errors import UsageError
from orchestrate.evaluation.evaluate import Answers
from orchestrate.providers.base import Provider
from orchestrate.types import Artifact, Feature, Message, Reply, Run

PLACES = ("auto", "host", "here")


@contextmanager
def answers(
    provider: Provider,
    run: Run,
    *,
    fetch: Callable[[], Artifact],
    on: str = "auto",
    max_tokens: int = 512,
    batch: int | None = None,
) -> Generator[Answers]:
    """Base and tuned model of a run, answering greedily. `fetch` brings its files here, when they
    are needed.

    Starts nothing that bills: `host` needs an endpoint that is up. Raises `UsageError` when `on` is
    impossible.
    """
    reachable = _reachable(provider, run)
    if on == "host" and not reachable:
        raise UsageError(
            f"{provider.name} has no endpoint up for this model",
            fix=f"orchestrate deploy {run.id}   (bills by the hour), or --on here",
        )
    if reachable and on != "here":
        if batch is not None and not provider.batches:
            raise UsageError(
                f"{provider.name} is asked one question at a time", fix="leave --batch out, or --on here"
            )
        yield _on_host(provider, run, max_tokens, {} if batch is None else {"batch": batch})
        return
    provider.require(Feature.DOWNLOAD)
    from orchestrate.local import Generator as LocalGenerator

    artifact = fetch()
    if artifact.base_model is None:
        raise UsageError(f"the downloaded model in {artifact.folder} does not say which base it belongs to")
    with LocalGenerator(artifact.base_model, adapter=Path(artifact.folder)) as model:

        def ask(prompts: Sequence[Sequence[Message]], *, base: bool) -> list[Reply]:
            return model.generate(prompts, base=base, max_tokens=max_tokens, temperature=0.0, batch=batch)

        yield Answers(
            tuned=lambda prompts: ask(prompts, base=False),
            base=lambda prompts: ask(prompts, base=True),
            by=f"the adapter on this machine, base {artifact.base_model}",
        )


def _reachable(provider: Provider, run: Run) -> bool:
    if Feature.CHAT not in provider.features:
        return False
    if Feature.DEPLOY in provider.features:
        return provider.endpoint(run.handle) is not None
    return True


def _on_host(provider: Provider, run: Run, max_tokens: int, options: dict[str, Any]) -> Answers:
    def ask(prompts: Sequence[Sequence[Message]], *, base: bool) -> list[Reply]:
        return provider.generate(
            run.handle, prompts, base=base, max_tokens=max_tokens, temperature=0.0, **options
        )

    sandbox = " (sandbox)" if provider.sandbox else ""
    return Answers(
        tuned=lambda prompts: ask(prompts, base=False),
        base=lambda prompts: ask(prompts, base=True),
        by=f"{provider.host}{sandbox}",
    )
