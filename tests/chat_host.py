"""A host that speaks the chat completions API on a loopback address, and writes what a test tells it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.http_server import Handler, serving


@dataclass(frozen=True)
class Lost:
    """The answer is written in full and billed at its most, and does not arrive: a proxy answers `status`
    after `after_s`, or with none the connection is cut."""

    status: int | None = None
    after_s: float = 0.0


Writes = Callable[[int, dict[str, Any]], "str | int | dict[str, Any] | Lost"]
"""(number of the request from 1, its body) -> the answer's text, or an HTTP status that refuses it, or
the error with which a 400 does, or how the answer is lost."""


def order_row(number: int) -> str:
    """A row like those of src/orchestrate/bundled/orders, another for each number."""
    cities = ("Lima", "Oslo", "Quito", "Hanoi", "Accra", "Turin", "Perth")
    goods = (
        "lamps",
        "chairs",
        "boots",
        "drums",
        "kites",
        "bowls",
        "maps",
        "tents",
        "rings",
        "clocks",
        "pens",
    )
    city, product = cities[number % 7], goods[number % 11]
    names = ("Ana Ruiz", "Bo Lind", "Chidi Obi", "Dana Katz", "Emre Ak")
    order = {
        "order_id": number,
        "customer": names[number % 5],
        "city": city,
        "product": product,
        "quantity": number % 97,
    }
    question = f"Order {number}: {number % 97} {product} to {city} for {names[number % 5]}, please."
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": json.dumps(order)}]
    return json.dumps({"messages": messages})


def fresh_rows(number: int, body: dict[str, Any]) -> str:
    """Ten new rows for each request."""
    del body
    return "\n".join(order_row(5000 + number * 10 + i) for i in range(10))


@dataclass
class ChatHost:
    url: str
    writes: Writes = fresh_rows
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list["str | None"])
    hold: threading.Event = field(default_factory=threading.Event)
    """Cleared, the host does not answer until it is set."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    embedded: list[list[str]] = field(default_factory=list[list[str]])
    """Texts that vectors were asked of."""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    """Fine-tuning jobs by their ids."""
    billed: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Prompt and completion tokens of every answer that was written, whether it arrived or not."""

    def bill(self, prompt: int, completion: int) -> None:
        with self.lock:
            self.billed.append((prompt, completion))

    def receive(self, body: dict[str, Any], key: str | None) -> str | int | dict[str, Any] | Lost:
        with self.lock:
            self.bodies.append(body)
            self.keys.append(key)
            number = len(self.bodies)
        self.hold.wait(240)
        return self.writes(number, body)


@contextmanager
def chat_host() -> Generator[ChatHost]:
    class Chat(Handler):
        def do_GET(self) -> None:
            job = host.jobs.get(self.path.rpartition("/")[2])
            self.answer(404 if job is None else 200, _error(404) if job is None else job)

        def do_POST(self) -> None:
            body = json.loads(self.body())
            if self.path == "/v1/embeddings":
                with host.lock:
                    host.embedded.append(body["input"])
                vectors = [
                    {"object": "embedding", "index": i, "embedding": [1.0, float(len(text))]}
                    for i, text in enumerate(body["input"])
                ]
                self.answer(200, {"object": "list", "model": body["model"], "data": vectors})
                return
            text = host.receive(body, self.headers.get("authorization"))
            assert self.path == "/v1/chat/completions"
            if isinstance(text, Lost):
                host.bill(sum(len(m["content"].encode()) for m in body["messages"]), _most(body))
                time.sleep(text.after_s)
                if text.status is None:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                text = text.status
            if isinstance(text, str):
                status, answer = 200, _completion(body, text)
                host.bill(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])
            elif isinstance(text, dict) and "choices" in text:
                status, answer = 200, text
            else:
                status, answer = (text, _error(text)) if isinstance(text, int) else (400, {"error": text})
            self.answer(status, answer, {"retry-after-ms": "1"} if status >= 429 else {})

    with serving(Chat) as url:
        host = ChatHost(f"{url}/v1")
        host.hold.set()
        try:
            yield host
        finally:
            host.hold.set()


def _most(body: dict[str, Any]) -> int:
    return body.get("max_tokens") or body["max_completion_tokens"]


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt = sum(len(m["content"]) for m in body["messages"]) // 4
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len(text) // 4,
            "total_tokens": prompt + len(text) // 4,
        },
    }


def _error(status: int) -> dict[str, Any]:
    return {"error": {"message": f"refused with {status}", "type": "error", "code": None}}
