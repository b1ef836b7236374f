"""What each error class of the installed SDKs and HTTP clients becomes, new ones too."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace

import pytest

from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    OrchestrateError,
    OutcomeUnknown,
    ProviderError,
    UnexpectedAnswer,
)
from orchestrate.providers.calls import hosted
from orchestrate.providers.calls.hosted import STATUS_ERRORS, Wire

STATUS = {"APIStatusError", "HTTPStatusError"}
"""They carry the host's answer, so that its status decides."""
NOTHING_SENT = {
    "CloseError": False,
    "ConnectError": True,
    "ConnectTimeout": True,
    "PoolTimeout": True,
    "ReadError": False,
    "ReadTimeout": False,
    "RemoteProtocolError": False,
    "WriteError": False,
    "WriteTimeout": False,
    "ProxyError": True,
    "InvalidURL": True,
}
NEVER_SENT = {name for name, certain in NOTHING_SENT.items() if certain} | {
    "UnsupportedProtocol",
    "LocalProtocolError",
}


def classes(module: str) -> list[type[BaseException]]:
    names = dict(vars(import_module(module)))
    found = [c for c in names.values() if inspect.isclass(c) and issubclass(c, BaseException)]
    return [c for c in found if c.__module__.partition(".")[0] == module.partition(".")[0]]


def raised(kind: type[BaseException], status: int | None = None) -> Callable[[], None]:
    """A call that fails with such an error, whatever its class wants to be made from."""
    error = kind.__new__(kind)
    if status is not None:
        error.response = SimpleNamespace(status_code=status, headers={}, json=dict)  # type: ignore[attr-defined]

    def call() -> None:
        raise error

    return call


@pytest.mark.parametrize("module", ["httpx", "httpx2", "openai", "together", "fireworks"])
def test_each_error_class_ends_in_our_tree_and_a_create_is_given_up_only_where_it_was_never_sent(
    module: str,
) -> None:
    wire = Wire("host")
    found = [c for c in classes(module) if issubclass(c, Exception)]
    assert len(found) > 10
    for kind in found:
        names = {k.__name__ for k in kind.__mro__}
        with pytest.raises(ProviderError) as read:
            wire.once(raised(kind))
        with pytest.raises(OrchestrateError) as create:
            wire.send_once("orc-1", raised(kind), str)
        if isinstance(status := getattr(kind, "status_code", None), int):  # of one class for one status
            expected = STATUS_ERRORS.get(status, InvalidRequest)
            assert 400 <= status < 500 and type(read.value) is type(create.value) is expected, kind
            continue
        unanswered = bool(names & {"TransportError", "RequestError", "APIConnectionError"})
        assert type(read.value) is (HostUnavailable if unanswered else UnexpectedAnswer), kind
        assert read.value.retryable, kind
        assert type(create.value) is (type(read.value) if names & NEVER_SENT else OutcomeUnknown), kind
        if names & STATUS:
            with pytest.raises(InvalidRequest):
                wire.send_once("orc-1", raised(kind, 418), str)
            with pytest.raises(OutcomeUnknown):
                wire.send_once("orc-1", raised(kind, 502), str)


@pytest.mark.parametrize("module", ["httpx", "httpx2"])
def test_what_certainly_did_not_leave_this_machine(module: str) -> None:
    by_name = {c.__name__: c for c in classes(module)}
    for name, certain in NOTHING_SENT.items():
        assert hosted.never_sent(by_name[name]("why")) is certain, name
