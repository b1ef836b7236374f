"""The server, judged by the official client."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel, ConfigDict, Field
from tests import loopback
from tests.paths import TINY
from tests.unit.serving.conftest import Known, random_adapter, serve

from orchestrate.errors import SetupError, UsageError
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.server import keys as client_keys
from orchestrate.serving.server.server_process import ServerSettings, ServingApp, add, notes
from orchestrate.serving.tuned import TunedModel
from orchestrate.store.gateway import hashed
from orchestrate.store.store import Store
from orchestrate.types import GatewayKey

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
QUESTION = [{"role": "user", "content": "Order 12: 3 lamps to Lima for Ana Ruiz, please."}]
BASE = str(TINY)
NAMED = TINY.name
"""As the base answers."""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving-home")


@pytest.fixture(scope="module")
def served(known: Known, home: Path) -> Iterator[ServingApp]:
    tuned = [
        TunedModel("one", known.adapter, BASE, "adapter"),
        TunedModel("other", known.other, BASE, "adapter"),
    ]
    with serve(
        tuned, home, ServerSettings(port=0, threads=1, most_at_once=16, most_waiting=4, four_bit=False)
    ) as up:
        yield up


@pytest.fixture(scope="module")
def client(served: ServingApp) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="a-key-of-tests", max_retries=0) as made:
        yield made


def ask(client: OpenAI, model: str = "one", **more: Any) -> Any:
    given = {"messages": QUESTION, "temperature": 0, "max_tokens": 24, **more}
    return client.chat.completions.create(model=model, **given)


def test_the_models_are_the_adapters_and_their_base(client: OpenAI) -> None:
    shown = client.models.list().data
    assert [m.id for m in shown] == [NAMED, "one", "other"]
    assert client.models.retrieve("one").model_dump()["parent"] == NAMED


def test_what_an_adapter_costs_is_measured_when_it_starts(served: ServingApp) -> None:
    costs = served.engine.costs
    assert [one.model for one in costs] == ["one", "other"]
    assert all(one.load_s > 0 and one.token_s > 0 and one.base_token_s > 0 for one in costs)
    assert f"{1000 * costs[0].load_s:.0f} ms once" in str(costs[0])


def test_each_name_is_answered_by_its_own_weights(client: OpenAI, known: Known) -> None:
    for canary in known.fingerprint.canaries[:3]:
        for name, wanted in (("one", canary.tuned), (NAMED, canary.base)):
            done = ask(client, name, messages=canary.messages, max_tokens=len(wanted.ids))
            assert done.choices[0].message.content.strip() == wanted.text.strip()


def test_a_wrong_name_is_not_answered_by_the_base(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        ask(client, "onne")
    assert raised.value.code == "model_not_found" and "one" in raised.value.message


def test_a_stream_says_the_same_as_the_whole(client: OpenAI) -> None:
    whole = ask(client)
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and whole.usage.completion_tokens > 1
    assert sum(bool(c.choices and c.choices[0].delta.content) for c in chunks) > 1


def test_the_clients_own_stream_helper_and_the_async_client(served: ServingApp) -> None:
    async def both() -> tuple[str, str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="a-key-of-tests") as client:
            given: dict[str, Any] = {"model": "one", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
            whole = await client.chat.completions.create(**given)
            async with client.chat.completions.stream(**given) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_completion()
            return whole.choices[0].message.content or "", final.choices[0].message.content or ""

    one, other = asyncio.run(both())
    assert one == other


def test_a_stop_word_ends_an_answer_and_is_not_told(client: OpenAI) -> None:
    whole = ask(client).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    cut = ask(client, stop=[stop, "never there"])
    assert cut.choices[0].message.content == whole[: whole.find(stop)]
    assert cut.choices[0].finish_reason == "stop"
    streamed = "".join(c.choices[0].delta.content or "" for c in ask(client, stop=stop, stream=True))
    assert streamed == cut.choices[0].message.content
    assert ask(client, max_tokens=2).choices[0].finish_reason == "length"


def test_several_answers_differ_and_a_seed_repeats_them(client: OpenAI) -> None:
    def drawn(seed: int) -> list[str | None]:
        done = ask(client, n=4, temperature=1.5, seed=seed)
        assert [c.index for c in done.choices] == [0, 1, 2, 3]
        return [c.message.content for c in done.choices]

    assert drawn(3) == drawn(3) and len(set(drawn(3))) > 1 and drawn(4) != drawn(3)
    streamed: dict[int, str] = {}
    for chunk in ask(client, n=4, temperature=1.5, seed=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] = streamed.get(choice.index, "") + (choice.delta.content or "")
    assert [streamed[n] for n in range(4)] == drawn(3)


def test_log_probabilities_belong_to_the_tokens_of_the_answer(client: OpenAI) -> None:
    done = ask(client, logprobs=True, top_logprobs=2)
    entries = done.choices[0].logprobs.content
    assert len(entries) == done.usage.completion_tokens
    text = b"".join(bytes(e.bytes) for e in entries).decode().removesuffix("<|im_end|>")
    assert text.strip() == done.choices[0].message.content
    for entry in entries:
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob) and entry.logprob <= 0
    chunks = ask(client, logprobs=True, stream=True)
    streamed = [e for c in chunks for choice in c.choices if choice.logprobs for e in choice.logprobs.content]
    assert [e.token for e in streamed] == [e.token for e in entries]


def test_completions_of_text_and_of_ids(client: OpenAI, served: ServingApp) -> None:
    given: dict[str, Any] = {"model": "one", "max_tokens": 8, "temperature": 0}
    text = client.completions.create(prompt="Paris is", logprobs=2, **given)
    asked = {"model": "one", "prompt": "Paris is"}
    ids = loopback.post(f"{served.url}/tokenize", json=asked).json()["tokens"]
    assert client.completions.create(prompt=ids, **given).choices[0].text == text.choices[0].text
    assert len(text.choices[0].logprobs.tokens) == text.usage.completion_tokens  # type: ignore[union-attr]
    both = client.completions.create(prompt=["Paris is", "Oslo is"], **given)
    assert both.choices[0].text == text.choices[0].text and len(both.choices) == 2
    streamed = client.completions.create(prompt="Paris is", stream=True, **given)
    assert "".join(c.choices[0].text for c in streamed if c.choices) == text.choices[0].text


@pytest.mark.slow
def test_calls_of_tools_come_as_calls(tmp_path: Path, home: Path) -> None:
    """A base that says one call, whatever it is asked: its template puts the words before the answer."""
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    said = '<tool_call>{"name": "get_weather", "arguments": {"city": "Lima"}}</tool_call>'
    base = parrot(tmp_path / "parrot", said)
    with (
        serve([], home / "parrot", ServerSettings(port=0, threads=1), base=str(base)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests") as client,
    ):
        given: dict[str, Any] = {"model": base.name, "messages": QUESTION, "temperature": 0, "tools": tools}
        done = client.chat.completions.create(**given)
        [call] = done.choices[0].message.tool_calls or []
        assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Lima"})
        assert done.choices[0].finish_reason == "tool_calls" and not done.choices[0].message.content
        with client.chat.completions.stream(**given) as stream:
            final = stream.get_final_completion()
        [streamed] = final.choices[0].message.tool_calls or []
        assert streamed.function.name == "get_weather" and final.choices[0].finish_reason == "tool_calls"
        plain = client.chat.completions.create(**{**given, "tool_choice": "none"})
        assert plain.choices[0].message.tool_calls is None or said in (plain.choices[0].message.content or "")
        back = [
            *QUESTION,
            done.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
        ]
        assert (
            client.chat.completions.create(**{**given, "messages": back}).usage.prompt_tokens
            > done.usage.prompt_tokens
        )  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [None, True, False])
def test_one_call_at_a_time_is_kept_where_it_is_asked_for(
    tmp_path: Path, home: Path, parallel: bool | None
) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    calls = (f'<tool_call>{{"name": "get_weather", "arguments": {{"n": {n}}}}}</tool_call>' for n in (1, 2))
    base = parrot(tmp_path / "parrot", "\n".join(calls))
    with (
        serve([], home / f"parrot-{parallel}", ServerSettings(port=0, threads=1), base=str(base)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests") as client,
    ):
        given: dict[str, Any] = {"model": base.name, "messages": QUESTION, "temperature": 0, "tools": tools}
        if parallel is not None:
            given["parallel_tool_calls"] = parallel
        whole = client.chat.completions.create(**given).choices[0].message.tool_calls or []
        with client.chat.completions.stream(**given) as stream:
            streamed = stream.get_final_completion().choices[0].message.tool_calls or []
        wanted = [{"n": 1}] if parallel is False else [{"n": 1}, {"n": 2}]
        for found in (whole, streamed):
            assert [json.loads(call.function.arguments) for call in found] == wanted


def parrot(folder: Path, said: str) -> Path:
    """A model that answers `said`, which is one word of its vocabulary, to everything."""
    import torch
    from tokenizers import Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>", said]
    own = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    own.decoder = decoders.Fuse()
    marks = {"pad_token": words[0], "eos_token": words[2], "unk_token": words[3]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, extra_special_tokens=[words[1]], **marks)
    tokenizer.chat_template = (TINY / "chat_template.jinja").read_text()
    tokenizer.save_pretrained(folder)
    shape = LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=1024, eos_token_id=2, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.zero_()
        embed, head = model.model.embed_tokens.weight, model.lm_head.weight
        for table in (embed, head):
            table.zero_()
        embed[:4, 0] = embed[4, 1] = head[4, 0] = head[2, 1] = 1
    model.save_pretrained(folder)
    return folder


NAMELESS = {"type": "function", "function": {"description": "Looks an order up."}}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"messages": []}, "messages"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 5000}, "maximum context length is 1024 tokens"),
        ({"response_format": {"type": "regex"}}, "json_object"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"extra_body": {"guided_regex": "a+"}}, "Unrecognized request argument supplied: guided_regex"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "only accepts text",
        ),
        ({"messages": [{"role": "priest", "content": "x"}]}, "role"),
        ({"stop": ""}, "stop"),
        ({"tools": [NAMELESS], "tool_choice": "required"}, "needs a name"),
        (
            {"tools": [NAMELESS], "tool_choice": {"type": "function", "function": {"name": "a"}}},
            "needs a name",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_field(
    more: dict[str, Any], said: str, client: OpenAI
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, **more)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 1e-320},
        {"n": None},
        {"temperature": 2, "top_p": 1e-300, "presence_penalty": 2, "frequency_penalty": -2},
        {"temperature": 1, "seed": -(2**63), "extra_body": {"top_k": 10**30}},
        {"temperature": 1, "logit_bias": {str(n): -100 for n in range(400)}},
        {"stop": ["\0", "\ud83d".encode("utf-16", "surrogatepass").decode("utf-16", "replace")]},
    ],
)
def test_settings_at_their_edges_are_answered(
    more: dict[str, Any], client: OpenAI, served: ServingApp
) -> None:
    assert ask(client, **more, max_tokens=4).choices and served.engine.restarts == 0


@pytest.mark.parametrize(
    "more",
    [
        {"logit_bias": {str(10**9): 1}},
        {"logit_bias": {str(10**30): 1}},
        {"seed": 10**30},
        {"max_tokens": 10**30},
        {"n": 17},
        {"extra_body": {"logprobs": True, "top_logprobs": 10**9}},
    ],
)
def test_what_no_model_can_do_is_refused_and_harms_nobody(
    more: dict[str, Any], client: OpenAI, served: ServingApp
) -> None:
    with pytest.raises(openai.BadRequestError):
        ask(client, **{"temperature": 1, "max_tokens": 4, **more})
    assert ask(client, max_tokens=4).choices and served.engine.restarts == 0


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "content", ['"\\ud800"', '[{"type": "text", "text": "\\udfff"}]'], ids=["text", "part"]
)
def test_half_a_character_is_refused_at_once_and_keeps_no_place(
    content: str, streamed: bool, served: ServingApp, client: OpenAI
) -> None:
    """JSON can write what UTF-8 cannot, and no process can be told."""
    message = f'{{"role": "user", "content": {content}}}'
    body = f'{{"model": "one", "stream": {json.dumps(streamed)}, "messages": [{message}]}}'
    for _ in range(20):  # as many as can be answered and wait
        done = loopback.post(
            f"{served.url}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/json"},
            timeout=60,
        )
        assert done.status_code == 400 and "lone surrogate" in done.json()["error"]["message"]
    asked = {"model": "one", "prompt": "x"}
    surrogate = json.dumps(asked).replace('"x"', '"\\ud800"')
    told = loopback.post(f"{served.url}/tokenize", content=surrogate)
    assert told.status_code == 400
    assert ask(client, max_tokens=2).choices


def test_a_model_without_numbers_is_told_and_the_others_answer(
    served: ServingApp, client: OpenAI, home: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    broken = random_adapter(tmp_path / "broken", 4)
    weights = broken / "adapter_model.safetensors"
    save_file({name: tensor * float("nan") for name, tensor in load_file(weights).items()}, weights)
    [note] = notes(home)
    add(home, TunedModel("broken", broken, BASE, "adapter"), note.url)
    wanted = ask(client, max_tokens=200).choices[0].message.content
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(ask, client, "one", max_tokens=200) for _ in range(3)]
        for temperature in (0, 1):
            with pytest.raises(openai.InternalServerError, match="non-finite numbers"):
                ask(client, "broken", temperature=temperature)
        with pytest.raises(openai.APIError, match="non-finite numbers"):
            list(ask(client, "broken", stream=True, n=3))
        assert {f.result().choices[0].message.content for f in beside} == {wanted}
    assert served.engine.restarts == 0
    admin = {"authorization": f"Bearer {note.admin_key}"}
    loopback.post(f"{served.url}/v1/unload_lora_adapter", json={"lora_name": "broken"}, headers=admin)


def test_tokenize_gives_the_trainers_ids(served: ServingApp, known: Known) -> None:
    for probe in known.fingerprint.probes:
        body = {"model": "one", "messages": probe.messages, "tools": probe.tools}
        done = loopback.post(f"{served.url}/tokenize", json=body)
        assert tuple(done.json()["tokens"]) == probe.ids, probe.kind


def test_the_server_is_proved_and_a_swapped_name_is_caught(served: ServingApp, known: Known) -> None:
    for model, state in (("one", "proved"), ("other", "failed"), (NAMED, "failed")):
        place = UrlPlace(served.url, model=model)
        proof = verify(known.fingerprint, place, run_id="r")
        place.close()
        assert proof.state == state and proof.engine == "orchestrate", proof
        assert place.notes == []


def test_an_adapter_is_added_while_others_are_answered(
    served: ServingApp, client: OpenAI, home: Path, tmp_path: Path
) -> None:
    third = TunedModel("third", random_adapter(tmp_path / "t", 5, use_dora=True), BASE, "adapter")
    with ThreadPoolExecutor(4) as pool:
        before = [pool.submit(ask, client, "one", max_tokens=200) for _ in range(4)]
        [note] = notes(home)
        add(home, third, note.url)
        given: dict[str, Any] = {"temperature": 1.9, "seed": 1, "max_tokens": 40}
        said = {
            name: ask(client, name, **given).choices[0].message.content for name in ("third", "one", NAMED)
        }
        assert len(set(said.values())) == 3
        assert len({f.result().choices[0].message.content for f in before}) == 1
    with pytest.raises(SetupError, match="already"):
        add(home, third, note.url)
    refused = loopback.post(
        f"{served.url}/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/etc"}
    )
    assert refused.status_code == 403
    admin = {"authorization": f"Bearer {note.admin_key}"}
    gone = loopback.post(f"{served.url}/v1/unload_lora_adapter", json={"lora_name": "third"}, headers=admin)
    assert gone.status_code == 200
    with pytest.raises(openai.NotFoundError):
        ask(client, "third")
    wrong = TunedModel("wrong", third.folder, "another/base", "adapter")
    with pytest.raises(UsageError):
        add(home, wrong, note.url)


def test_more_than_can_wait_is_told_to_come_back(served: ServingApp) -> None:
    async def all_at_once() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=240) as http:
            body = {"model": "one", "messages": QUESTION, "max_tokens": 60, "temperature": 1.9, "seed": 1}
            asked = [http.post(f"{served.url}/v1/chat/completions", json=body) for _ in range(40)]
            return await asyncio.gather(*asked)

    done = asyncio.run(all_at_once())
    statuses = [d.status_code for d in done]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 20, statuses
    refused = next(d for d in done if d.status_code == 429)
    assert int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "queue_full"
    assert len({d.json()["choices"][0]["message"]["content"] for d in done if d.status_code == 200}) == 1


def test_metrics_and_health(served: ServingApp, client: OpenAI) -> None:
    ask(client)
    text = loopback.get(f"{served.url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values['orchestrate_requests_total{model="one",status="200"}']) >= 1
    assert float(values['orchestrate_tokens_total{model="one",kind="completion"}']) > 0
    assert values["orchestrate_up"] == "1" and values["orchestrate_requests_running"] == "0"
    assert float(values['orchestrate_answer_seconds_bucket{le="+Inf"}']) == float(
        values["orchestrate_answer_seconds_count"]
    )
    assert loopback.get(f"{served.url}/health").json()["status"] == "ok"
    assert loopback.get(f"{served.url}/v1/nothing").status_code == 404


def test_pages_of_other_sites_cannot_ask(served: ServingApp) -> None:
    body = {"model": "one", "messages": QUESTION}
    for headers in ({"origin": "https://evil.example"}, {"host": "evil.example"}):
        done = loopback.post(f"{served.url}/v1/chat/completions", json=body, headers=headers)
        assert done.status_code in (403, 404) and "choices" not in done.json()


@pytest.mark.slow
def test_a_long_prompt_holds_nobody_up(served: ServingApp, client: OpenAI) -> None:
    """It takes seconds to be tokenized and refused; others are answered meanwhile."""
    meanwhile = 0
    for words in (50_000, 150_000):  # where the first is refused too soon to tell
        body = {"model": "one", "messages": [{"role": "user", "content": "where is order 17? " * words}]}
        answers = list[Any]()

        def sent(body: Any = body, answers: list[Any] = answers) -> None:
            answers.append(loopback.post(f"{served.url}/v1/chat/completions", json=body, timeout=240))

        asking = threading.Thread(target=sent)
        asking.start()
        meanwhile = 0
        while asking.is_alive():
            assert ask(client, max_tokens=1).choices
            meanwhile += 1
        [answer] = answers
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "context_length_exceeded"
        if meanwhile >= 3:
            return
    raise AssertionError(f"one was under way when it came, and one waited: {meanwhile} were answered")


def test_a_client_that_leaves_frees_its_place(served: ServingApp) -> None:
    body = {"model": "one", "messages": QUESTION, "max_tokens": 900, "temperature": 2, "stream": True}
    with loopback.stream("POST", f"{served.url}/v1/chat/completions", json=body) as stream:
        next(stream.iter_lines())
    deadline = time.monotonic() + 240
    while served.api.load.inside and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.api.load.inside == 0


def test_sixteen_clients_are_answered_side_by_side(served: ServingApp) -> None:
    """Each has tokens of its answer before anyone has a whole one; `test_batching` counts the steps."""
    begun, ended, clients = set[int](), set[int](), 16

    async def read(client: AsyncOpenAI, number: int) -> None:
        stream = await client.chat.completions.create(
            model=("one", "other")[number % 2],
            messages=QUESTION,  # type: ignore[arg-type]
            temperature=1.9,
            seed=number,
            max_tokens=900,
            logit_bias={"2": -100},
            stream=True,
        )
        async with stream:
            async for _ in stream:
                begun.add(number)
                if len(begun) == clients:
                    return
        ended.add(number)

    async def all_of_them() -> None:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="a-key-of-tests", timeout=240) as client:
            await asyncio.gather(*(read(client, n) for n in range(clients)))

    asyncio.run(all_of_them())
    assert (len(begun), ended) == (clients, set())


@pytest.mark.slow
def test_keys_are_asked_for_once_there_are_some_and_kept_as_hashes(known: Known, tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="needs keys"),
        serve([], tmp_path, ServerSettings(host="0.0.0.0", port=0), base=BASE),
    ):
        pass
    moved = "orc-made-by-an-earlier-version"
    kept = tmp_path / "serve-keys.json"
    kept.write_text(json.dumps({"ci": hashed(moved), "old": hashed("orc-old")}))
    with Store.open(f"sqlite:///{tmp_path}/runs.sqlite3") as store:
        gateways = store.gateway_keys.add(GatewayKey(name="ci", created_at=store.clock.now()), by="me")
        for _ in range(2):  # killed in between, it is done again
            client_keys.bring_in(tmp_path, store, by="me")
            assert not kept.exists()
            kept.write_text(json.dumps({"ci": hashed(moved)}))
        names = {key.name: key.opens for key in store.gateway_keys.all()}
        assert names == {"ci": "gateway", "ci 2": "serve", "old": "serve"}
        key = client_keys.make(store, "me", by="me")
        with pytest.raises(UsageError, match="already exists"):
            client_keys.make(store, "ci", by="me")
        assert key.encode() not in b"".join(file.read_bytes() for file in tmp_path.glob("runs.sqlite3*"))
        with serve([], tmp_path, ServerSettings(port=0, threads=1), base=BASE) as up:

            def status(given: str | None) -> int:
                headers = {"authorization": f"Bearer {given}"} if given else {}
                return loopback.get(f"{up.url}/v1/models", headers=headers).status_code

            for given, wanted in ((None, 401), ("orc-wrong", 401), (gateways, 401), (moved, 200), (key, 200)):
                assert status(given) == wanted, given
            assert loopback.get(f"{up.url}/health").status_code == 200
            place = UrlPlace(up.url, model=NAMED, key=key)
            assert place.engine == "orchestrate"
            place.close()
            for name in ("me", "ci 2", "old"):
                client_keys.revoke(store, name, by="me")
            time.sleep(1.1)  # the server was not asked meanwhile
            assert status(key) == 401, "the first request counts"
            assert {status(None), status(moved)} == {401}, "without the last key it is not open to everybody"
        for name in ("nobody", "ci"):
            with pytest.raises(UsageError, match="unknown key"):
                client_keys.revoke(store, name, by="me")


class Order(BaseModel):
    item: Literal["lamp", "chair"]
    count: Annotated[int, Field(ge=1, le=9)]
    model_config = ConfigDict(extra="forbid")


@pytest.mark.slow
def test_answers_come_in_the_form_that_was_asked_for(client: OpenAI) -> None:
    """By the official client's own parsers, whole and as a stream, for an adapter that writes neither."""
    assert "item" not in ask(client).choices[0].message.content
    for model in ("one", NAMED):
        done = client.chat.completions.parse(
            model=model, messages=QUESTION, response_format=Order, n=2, seed=7
        )
        assert all(choice.message.parsed for choice in done.choices)
    form = {"type": "json_schema", "json_schema": {"name": "o", "schema": Order.model_json_schema()}}
    whole = ask(client, response_format=form).choices[0].message.content
    pieces = ask(client, response_format=form, stream=True)
    assert Order.model_validate_json(whole)
    assert "".join(c.choices[0].delta.content or "" for c in pieces if c.choices) == whole
    schema = Order.model_json_schema()
    tools = [
        {"type": "function", "function": {"name": name, "parameters": schema}} for name in ("buy", "ask")
    ]
    for choice in ("required", {"type": "function", "function": {"name": "ask"}}):
        done = ask(client, tools=tools, tool_choice=choice, max_tokens=80).choices[0]
        [call] = done.message.tool_calls
        assert done.finish_reason == "tool_calls" and Order.model_validate_json(call.function.arguments)
        assert call.function.name == "ask" or choice == "required"
    for wrong in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "o"}}},
        {"response_format": {"type": "grammar"}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/no"}}}},
        {"tools": tools, "tool_choice": {"type": "function", "function": {"name": "none of them"}}},
        {"tool_choice": "required"},
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, **wrong)
    patterns = {"allOf": [{"type": "string", "pattern": f"^.*a{n}.*$"} for n in range(40)]}
    for schema in (patterns, {"enum": ["<|im_end|>"]}, {"type": "object", "properties": {"<|im_end|>": {}}}):
        form = {"type": "json_schema", "json_schema": {"name": "o", "schema": schema}}
        with pytest.raises(openai.BadRequestError, match="schema"):
            ask(client, response_format=form)
    for function in (
        {"name": 'f", "x": "'},
        {"name": ""},
        {"name": "f", "parameters": {"type": "array"}},
        None,
    ):
        with pytest.raises(openai.BadRequestError):
            ask(client, tools=[{"type": "function", "function": function}], tool_choice="required")
    assert ask(client).choices[0].message.content, "and it answers on"


def test_models_that_do_not_go_together_are_refused_before_loading(known: Known, tmp_path: Path) -> None:
    one = TunedModel("one", known.adapter, BASE, "adapter")
    for tuned, said in (
        ([one, TunedModel("one", known.other, BASE, "adapter")], "two models are named 'one'"),
        ([one, TunedModel("b", known.other, "another/base", "adapter")], "one base"),
        ([one, TunedModel("w", TINY, BASE, "full")], "served alone"),
        ([TunedModel(NAMED, known.adapter, BASE, "adapter")], "its base model"),
        ([], "one base"),
    ):
        with pytest.raises(UsageError, match=said), serve(tuned, tmp_path, ServerSettings(port=0)):
            pass


@pytest.mark.slow
def test_what_changed_on_disk_is_not_served_by_the_next_process(known: Known, tmp_path: Path) -> None:
    """An adapter that was deleted is a wrong name; of other weights nothing is answered, and it is told."""
    base, other = tmp_path / "base", tmp_path / "other"
    shutil.copytree(TINY, base)
    shutil.copytree(known.other, other)
    tuned = [
        TunedModel("one", known.adapter, str(base), "adapter"),
        TunedModel("other", other, str(base), "adapter"),
    ]
    with (
        serve(tuned, tmp_path, ServerSettings(port=0, threads=1, four_bit=False)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=20, timeout=240) as client,
    ):
        before = ask(client).choices[0].message.content
        shutil.rmtree(other)
        kill(up)
        early = loopback.post(f"{up.url}/v1/chat/completions", json={"model": "one", "messages": QUESTION})
        assert early.status_code == 200 or int(early.headers["retry-after"]) >= 2
        assert ask(client).choices[0].message.content == before, "who comes again is answered"
        with pytest.raises(openai.NotFoundError):
            ask(client, "other")
        [weights] = base.glob("*.safetensors")
        os.utime(weights, (1, 1))
        kill(up)
        deadline = time.monotonic() + 240
        while (health := loopback.get(f"{up.url}/health")).json()["status"] != "failing":
            assert time.monotonic() < deadline, health.text
            time.sleep(0.1)
        done = loopback.post(f"{up.url}/v1/chat/completions", json={"model": "one", "messages": QUESTION})
        assert done.status_code == 503 and "have changed since this server started" in done.text
        shutil.copystat(TINY / weights.name, weights)
        assert ask(client).choices[0].message.content == before, "it is tried again and again"
        assert loopback.get(f"{up.url}/health").json() == {
            "status": "ok",
            "models": up.models,
            "failure": None,
        }


@pytest.mark.slow
def test_an_adapter_of_other_weights_is_held_back_alone_until_it_is_right_again(
    known: Known, tmp_path: Path
) -> None:
    other = shutil.copytree(known.other, tmp_path / "other")
    tuned = [TunedModel("one", known.adapter, BASE, "adapter"), TunedModel("other", other, BASE, "adapter")]
    weights = other / "adapter_model.safetensors"
    with (
        serve(tuned, tmp_path, ServerSettings(port=0, threads=1, four_bit=False)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=20, timeout=240) as client,
    ):
        before = {name: ask(client, name).choices[0].message.content for name in ("one", "other")}
        weights.write_bytes((known.adapter / "adapter_model.safetensors").read_bytes())
        kill(up)
        assert ask(client).choices[0].message.content == before["one"], "its base serves the others"
        done = loopback.post(f"{up.url}/v1/chat/completions", json={"model": "other", "messages": QUESTION})
        assert done.status_code == 503 and "have changed since this server started" in done.text
        health = loopback.get(f"{up.url}/health").json()
        assert health["status"] == "ok" and str(other) in health["failure"]
        weights.write_bytes((known.other / "adapter_model.safetensors").read_bytes())
        shutil.copystat(known.other / "adapter_model.safetensors", weights)
        deadline = time.monotonic() + 60
        while loopback.get(f"{up.url}/health").json()["failure"] is not None:
            assert time.monotonic() < deadline, up.engine.held_back
            time.sleep(0.1)
        assert ask(client, "other").choices[0].message.content == before["other"]
        assert up.engine.restarts == 1


def kill(up: ServingApp) -> None:
    """Returns when the server has seen that its process is gone."""
    assert up.engine.pid is not None
    os.kill(up.engine.pid, signal.SIGKILL)
    while up.engine.up:
        time.sleep(0.01)


@pytest.mark.slow
def test_sixteen_clients_lose_and_mix_nothing_while_processes_die_and_readers_dawdle(
    known: Known, tmp_path: Path
) -> None:
    """Each client knows the answers of its adapter; the process that answers is killed after some of them."""
    tuned = [
        TunedModel("one", known.adapter, BASE, "adapter"),
        TunedModel("other", known.other, BASE, "adapter"),
    ]
    with (
        serve(tuned, tmp_path, ServerSettings(port=0, threads=1, most_at_once=16, four_bit=False)) as up,
        OpenAI(base_url=f"{up.url}/v1", api_key="a-key-of-tests", max_retries=20, timeout=240) as client,
    ):
        asked = [
            {"model": name, "messages": canary.messages, "max_tokens": 60, "temperature": 1.2, "seed": n}
            for n, canary in enumerate(known.fingerprint.canaries)
            for name in ("one", "other", NAMED)
        ]
        wanted = [client.chat.completions.create(**given).choices[0].message.content for given in asked]  # type: ignore[call-overload]
        assert len(set(wanted)) > len(wanted) / 2
        over, broken, done = threading.Event(), [0] * 16, [0] * 16

        def work(number: int) -> None:
            chance = random.Random(number)
            while not over.is_set() or not done[number]:
                case = chance.randrange(len(asked))
                if number % 2:
                    said = client.chat.completions.create(**asked[case]).choices[0].message.content  # type: ignore[call-overload]
                else:
                    said = _slowly(client, asked[case], chance)
                    if said is None:
                        broken[number] += 1
                        continue
                assert said == wanted[case], (number, asked[case]["model"])
                done[number] += 1

        with ThreadPoolExecutor(16) as pool:
            working = [pool.submit(work, n) for n in range(16)]
            try:
                for restarts in range(1, 4):
                    deadline, enough = time.monotonic() + 240, sum(done) + 48
                    while sum(done) < enough and not any(w.done() for w in working):
                        assert time.monotonic() < deadline, done
                        time.sleep(0.05)
                    assert up.engine.pid is not None
                    os.kill(up.engine.pid, signal.SIGKILL)
                    deadline = time.monotonic() + 240
                    while up.engine.restarts < restarts or not up.engine.up:
                        assert time.monotonic() < deadline, "the process did not come back"
                        time.sleep(0.05)
            finally:
                over.set()
            for w in working:
                w.result()
        assert up.engine.restarts == 3 and all(done), done
        # A stream that had begun cannot be asked again by itself; its client was told, and no more than
        # these.
        assert sum(broken) <= 3 * 8
        deadline = time.monotonic() + 240
        while up.api.load.inside and time.monotonic() < deadline:
            time.sleep(0.05)
        assert up.api.load.inside == 0


def _slowly(client: OpenAI, given: dict[str, Any], chance: random.Random) -> str | None:
    """Read in pieces, with rests; `None` where the stream ended with an error."""
    said = ""
    try:
        for chunk in client.chat.completions.create(**given, stream=True):
            said += chunk.choices[0].delta.content or ""
            time.sleep(chance.choice([0, 0, 0.05]))
    except openai.APIError:
        return None
    return said
