"""llama.cpp's own server, started as we start it: what it answers is what was trained, and what is not is
seen."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.ports import own_port
from tests.unit.serving.conftest import random_adapter
from tests.unit.serving.gguf import QUESTION, Made, exported, file_of, peft_of

from orchestrate.local.weights import ask_all
from orchestrate.serving import engines
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import LEAST_FLOOR, verify
from orchestrate.types import Proof

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TOOL = shutil.which("llama-server")
EXACT = ("--threads", "1", "--flash-attn", "off", "--cache-type-k", "f32", "--cache-type-v", "f32")
"""Its flash attention and its cache are in 16 bits by default, also for weights of 32."""


@contextmanager
def server(made: Made, file: str | Path, *more: str, python: Path | None = None) -> Generator[str]:
    if python is None and TOOL is None:
        pytest.importorskip(
            "xllamacpp", reason="llama.cpp's server is not here: no llama-server, no xllamacpp"
        )
        python = Path(sys.executable)
    command = engines.llama_server(
        made.tuned, Path(file), host="127.0.0.1", port=own_port(), parallel=4, python=python
    )
    with engines.started(command.with_more(more)) as url:
        yield url


def proof_of(made: Made, url: str) -> Proof:
    place = UrlPlace(url, model="tuned")
    try:
        return verify(made.fingerprint, place, run_id="r")
    finally:
        place.close()


def test_the_server_is_proved_by_the_ids_that_it_tells(made: Made) -> None:
    with server(made, file_of(made.whole), *EXACT) as url:
        proof = proof_of(made, url)
    assert (proof.engine, proof.state) == ("llama.cpp", "proved"), proof
    tokens, _, distance, _ = proof.stages
    assert tokens.figures["same"] == len(made.fingerprint.probes), "by /apply-template and /tokenize"
    assert distance.figures["agree"] == len(made.fingerprint.canaries)
    assert distance.figures["nats a token"] < LEAST_FLOOR


def test_fifty_prompts_get_the_trainers_ids_from_the_server_with_the_adapter(made: Made) -> None:
    rows = [
        {"messages": [{"role": "user", "content": QUESTION.format(n=n, m=7 * n)}], "max_tokens": 12}
        for n in range(50)
    ]
    [wanted] = ask_all([{"task": "read", "folder": str(peft_of(made)), "base": str(made.base), "rows": rows}])
    with (
        server(made, made.base_gguf, "--lora", file_of(made.adapter), *EXACT) as url,
        httpx.Client(base_url=url, timeout=240) as client,
    ):
        for row, known in zip(rows, wanted["answers"], strict=True):
            text = client.post("/apply-template", json={"messages": row["messages"]}).json()["prompt"]
            asked = {"content": text, "add_special": True, "parse_special": True}
            ids = client.post("/tokenize", json=asked).json()["tokens"]
            assert len(ids) > 30 and ids == known["ids"]
            body = {"prompt": ids, "n_predict": 12, "temperature": 0, "return_tokens": True}
            assert client.post("/completion", json=body).json()["tokens"] == known["answer"]


def the_base(made: Made, folder: Path) -> tuple[str, ...]:
    return ()


def swapped(made: Made, folder: Path) -> tuple[str, ...]:
    other = exported(random_adapter(folder / "other", 2, made.base), folder)
    return ("--lora", file_of(other))


def other_template(made: Made, folder: Path) -> tuple[str, ...]:
    text = (made.base / "chat_template.jinja").read_text()
    tampered = folder / "tampered.jinja"
    tampered.write_text(
        text.replace("'<|im_start|>assistant\\n' -}}\n{%- endif", "'<|im_start|>assistant' -}}\n{%- endif")
    )
    assert tampered.read_text() != text
    return ("--lora", file_of(made.adapter), "--chat-template-file", str(tampered))


@pytest.mark.parametrize(
    ("fault", "stage", "said"),
    [
        (the_base, "answers", "answers like the base"),
        (swapped, "answers", "answers like neither the tuned model"),
        (other_template, "tokens", "the server tokenizes prompts differently than in training:"),
    ],
)
def test_what_is_served_otherwise_is_caught(
    fault: Callable[[Made, Path], tuple[str, ...]], stage: str, said: str, made: Made, tmp_path: Path
) -> None:
    with server(made, made.base_gguf, *fault(made, tmp_path), *EXACT) as url:
        proof = proof_of(made, url)
    [failed] = [s for s in proof.stages if s.name == stage]
    assert proof.state == "failed" and failed.state == "failed" and said in failed.detail, proof


def test_a_server_that_goes_on_after_the_end_of_a_turn_is_caught(made: Made) -> None:
    """As one whose file names another token as the end: here the end is kept from being said."""
    wire = httpx.Client(timeout=240)

    def between(request: httpx.Request) -> httpx.Response:
        body: dict[str, Any] | None = json.loads(request.content) if request.content else None
        if body is not None and request.url.path.endswith("completions"):
            body["logit_bias"] = [[2, False]]
        done = wire.request(request.method, request.url, json=body)
        return httpx.Response(done.status_code, json=done.json(), request=request)

    with server(made, file_of(made.whole), *EXACT) as url:
        place = UrlPlace(url, model="tuned", client=httpx.Client(transport=httpx.MockTransport(between)))
        proof = verify(made.fingerprint, place, run_id="r")
        place.close()
    wire.close()
    assert {s.name: s.state for s in proof.stages}["stop"] == "failed", proof


def test_llama_cpp_pythons_server_is_proved_too(made: Made) -> None:
    """It tells counts of tokens only, and leaves out bytes that are no text."""
    python = os.environ.get("ORCHESTRATE_TEST_LLAMA_CPP_PYTHON")
    if python is None:
        pytest.skip(
            "llama-cpp-python takes a compiler: ORCHESTRATE_TEST_LLAMA_CPP_PYTHON names a python with it"
        )
    with server(made, file_of(made.whole), "--threads", "1", python=Path(python)) as url:
        proof = proof_of(made, url)
    states = {s.name: s.state for s in proof.stages}
    assert states == {"tokens": "unknown", "answers": "passed", "distance": "passed", "stop": "passed"}, proof
