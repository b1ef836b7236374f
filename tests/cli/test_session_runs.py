"""The run of a training session under the commands that take a tuned model: eval, serve, compare."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from tests.cli.conftest import Cli
from tests.cli.serving import served
from tests.unit.sessions.loop import LORA, OPTIONS

from orchestrate import Orchestrator
from orchestrate.settings import config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
QUESTIONS = [f"What is item {n}?" for n in (1, 2)]
ANSWER = "Item is a chair."


def datum(tokenizer: Any, question: str) -> dict[str, Any]:
    """A row of chat, rendered by the model's own template."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    prompt = tokenizer(text, add_special_tokens=False)["input_ids"]
    answer = tokenizer(f"{ANSWER}<|im_end|>", add_special_tokens=False)["input_ids"]
    ids, weights = prompt + answer, [0.0] * len(prompt) + [1.0] * len(answer)
    return {
        "model_input": ids[:-1],
        "loss_fn_inputs": {"target_tokens": ids[1:], "weights": weights[1:]},
    }


@pytest.fixture
def session(cli_env: dict[str, str], tmp_path: Path, quick_python: None) -> Iterator[str]:
    """The run of a session that has learnt its rows by heart."""
    with Orchestrator(config.load(env=cli_env, cwd=tmp_path)) as ft:
        with ft.session("tiny-chat", lora={**LORA, "rank": 8}, options=OPTIONS) as s:
            tokenizer = s.tokenizer()
            data = [datum(tokenizer, question) for question in QUESTIONS]
            loss = s.forward(data).loss
            while loss > 0.02:
                assert s.step < 300, loss
                loss = s.forward_backward(data).loss
                s.optim_step({"learning_rate": 3e-3})
        yield s.id


def test_a_session_s_run_is_evaluated_served_and_compared(
    cli: Cli, cli_env: dict[str, str], tmp_path: Path, session: str
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": ANSWER}]}
        for q in QUESTIONS
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = cli("eval", session, "--test", "test.jsonl", "--max-tokens", "24", "--json")
    assert done.code == 0, done.err
    scores = {
        one["contender"]: one["score"]["value"]
        for one in done.json["measures"]
        if one["metric"] == "exact_match"
    }
    assert scores == {session: 1.0, "base tiny-chat": 0.0}

    with (
        served(session, tmp_path, cli_env) as told,
        OpenAI(base_url=told["url"], api_key="key-of-the-tests", max_retries=0) as client,
    ):
        assert told["models"][1:] == [session]
        for question in QUESTIONS:
            asked: Any = {
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 24,
                "temperature": 0,
            }
            [choice] = client.chat.completions.create(model=session, **asked).choices
            assert (choice.message.content, choice.finish_reason) == (ANSWER, "stop")

    command = "submit --provider local --yes --watch --json --model tiny-chat --train test.jsonl --epochs 1"
    done = cli(*command.split(), "--set", "provider_options.local.threads=1")
    assert done.code == 0, done.err  # not taken for the session once more
    ordinary = done.json[0]["id"]
    both = cli("compare", session, ordinary, "--json")
    assert both.code == 0, both.err
    assert {session, ordinary} <= set(json.dumps(both.json).replace('"', " ").split())
