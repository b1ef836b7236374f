"""Training sessions at Tinker, or at a server with Tinker's interface, using its official client."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future
from importlib import import_module
from typing import Any, ClassVar

from orchestrate.providers.sessions import ClientSession, SessionOrder, client_error, sampled

CLOSE_S = 10.0
"""Timeout in seconds for ending a session. A session that stays open costs nothing and expires at the
host."""


class TinkerSession(ClientSession):
    """A session with one model at the host."""

    host: ClassVar[str] = "tinker"

    def __init__(self, order: SessionOrder, *, base_url: str | None, api_key: str) -> None:
        tinker: Any = import_module("tinker")
        self._types = import_module("tinker.types")
        self._service: Any = None
        try:
            self._service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
            made = self._service.create_lora_training_client(base_model=order.model, **order.lora)
            self._training = made.result()
        except BaseException as error:
            self.close()
            raise client_error(self.host, error) from error

    def _future(self, sent: Any) -> Future[Any]:
        return sent.future()

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the current weights. If they changed since the last sample, first save them for
        sampling."""
        if self._sampling is None:
            self._sampling = self._done(self._training.save_weights_and_get_sampling_client())
        stop: list[Any] = [*request["stop"], *(request["stop_ids"] or [])]
        params = self._types.SamplingParams(
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            top_p=request["top_p"],
            top_k=request["top_k"] or -1,
            seed=request["seed"],
            stop=None if request["stop_ids"] is None else stop,
        )
        prompt = self._types.ModelInput.from_ints(list(request["prompt"]))
        sampling = self._sampling
        return self._submit(
            lambda: sampling.sample(prompt, num_samples=request["n"], sampling_params=params),
            lambda result: sampled(result.sequences),
        )

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Create a new model at the host from the saved state, because the host's client can't load a state
        into an existing model."""
        made = (
            self._service.create_training_client_from_state_with_optimizer
            if optimizer
            else self._service.create_training_client_from_state
        )
        self._training, self._sampling = self._done(made(saved)), None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        if self._service is None:
            return
        try:
            self._service.close("success").result(CLOSE_S)
        except Exception as error:
            raise client_error(self.host, error) from error
