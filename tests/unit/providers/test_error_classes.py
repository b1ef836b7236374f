"""Each error class of the installed SDKs and HTTP clients is one that our mapping knows; a new one fails."""

from __future__ import annotations

import inspect
from importlib import import_module

import pytest

from orchestrate.providers import hosted

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
ELSEWHERE = {
    # bases, raised only as one of their subclasses
    "HTTPError", "APIError", "OpenAIError", "TogetherError", "FireworksError",
    # an answer that came and cannot be read
    "APIResponseValidationError", "LengthFinishReasonError", "ContentFilterFinishReasonError",
    # wrong use of a client, found before or after the request, by nothing that we call
    "CookieConflict", "StreamError", "StreamConsumed", "StreamClosed", "ResponseNotRead", "RequestNotRead",
    # together's own checks of a file, around requests that create no job
    "DownloadError", "FileTypeError",
    # parts of the SDKs that we do not use: webhooks, sockets, sign-in
    "InvalidWebhookSignatureError", "WebSocketConnectionClosedError", "WebSocketQueueFullError", "OAuthError",
    "_AmbiguousModuleClientUsageError", "SubjectTokenProviderError", "MutuallyExclusiveAuthError",
}  # fmt: skip


def classes(module: str) -> list[type[BaseException]]:
    names = dict(vars(import_module(module)))
    found = [c for c in names.values() if inspect.isclass(c) and issubclass(c, BaseException)]
    return [c for c in found if c.__module__.partition(".")[0] == module.partition(".")[0]]


@pytest.mark.parametrize("module", ["httpx", "httpx2", "openai", "together", "fireworks"])
def test_each_error_class_is_mapped(module: str) -> None:
    found = classes(module)
    assert found
    mapped = hosted._NOTHING_SENT | hosted._TRANSPORT | STATUS  # pyright: ignore[reportPrivateUsage]
    unknown = [c.__name__ for c in found if not {k.__name__ for k in c.__mro__} & mapped]
    assert set(unknown) <= ELSEWHERE, set(unknown) - ELSEWHERE


@pytest.mark.parametrize("module", ["httpx", "httpx2"])
def test_what_certainly_did_not_leave_this_machine(module: str) -> None:
    by_name = {c.__name__: c for c in classes(module)}
    for name, certain in NOTHING_SENT.items():
        assert hosted.never_sent(by_name[name]("why")) is certain, name
