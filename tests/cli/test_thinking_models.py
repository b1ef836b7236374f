"""A model that thinks, by the command: what the spec says of its chat template is in plan, result, chat and
evaluation, and its answers are read apart, there and behind a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
from openai import OpenAI
from tests.cli.conftest import Cli
from tests.cli.serving import served
from tests.unit.local.thinkers import make_family, write_rows
from transformers import AutoTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
LOOK = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Looks.",
        "parameters": {"type": "object", "properties": {"at": {"type": "string", "description": "Where."}}},
    },
}
COLOURS = {"Sky?": "blue", "Grass?": "green", "Snow?": "white"}


@pytest.mark.parametrize("family", ["thinks", "channels"])
def test_from_plan_to_an_evaluation(cli: Cli, cli_env: dict[str, str], tmp_path: Path, family: str) -> None:
    base = make_family(family, tmp_path / "base")
    thought = {"reasoning": "hm hm"} if family == "channels" else {}
    rows: list[tuple[str, dict[str, Any]]] = [(q, {"content": c, **thought}) for q, c in COLOURS.items()]
    write_rows(tmp_path / "train.jsonl", rows * 4)
    (tmp_path / "tools.json").write_text(json.dumps([LOOK]))
    with (tmp_path / "train.jsonl").open("a") as out:
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"at": "town"}'}}
        conversation = [
            {"role": "user", "content": "Town?"},
            {"role": "assistant", "tool_calls": [call]},
        ]
        out.write((json.dumps({"messages": conversation, "tools": [LOOK]}) + "\n") * 4)
    write_rows(tmp_path / "test.jsonl", rows)
    spec: dict[str, Any] = {
        "model": {"local": str(base), "openai": "gpt-4.1-mini"},
        "train": "train.jsonl",
        "adapter": {"type": "full"},
        "epochs": 16,
        "batch_size": 4,
        "learning_rate": 2e-3,
        "provider_options": {"local": {"threads": 1}},
    }
    if family == "thinks":
        spec["chat_template_kwargs"] = {"enable_thinking": False}
    (tmp_path / "finetune.yaml").write_text(json.dumps(spec))
    told = " ".join(cli("plan", "--provider", "local,openai", "--all").out.split())
    if family == "thinks":
        assert "OpenAI renders rows with its own template" in told
        assert "stored with the result for chat, evaluation and export" in told
    done = cli("submit", "--provider", "local", "--yes", "--watch")
    assert done.code == 0, done.err

    [reply] = cli("chat", "last", "Sky?", "--json").json
    reasoning = "hm hm" if family == "channels" else None
    assert (reply["content"], reply["reasoning"], reply["finish_reason"]) == ("blue", reasoning, "stop")
    if family == "channels":
        shown = cli("chat", "last", "Sky?")
        assert shown.out.strip() == "blue" and "thinking: hm hm" in shown.err
    else:
        cut = cli("chat", "last", "Sky?", "--max-tokens", "2")
        assert "the answer was cut off at 2 tokens" in cut.err
        long = cli("chat", "last", "Sky? " * 1500)
        assert long.code != 0 and "leaves no room for an answer in the context of 1024 tokens" in long.err

    [called] = cli("chat", "last", "Town?", "--tools", "tools.json", "--json").json
    assert [c["function"] for c in called["tool_calls"]] == [{"name": "look", "arguments": '{"at": "town"}'}]
    assert called["finish_reason"] == "tool_calls"
    result = cli("chat", "last", "Town?", "It rains.", "--tools", "tools.json", "--json")
    assert result.code == 0 and len(result.json) == 2, result.err
    if family == "thinks":  # whose template shows the tools
        assert called["prompt_tokens"] > cli("chat", "last", "Town?", "--json").json[0]["prompt_tokens"] + 20

    [run] = [row["id"] for row in cli("runs", "--json").json]
    # All weights of so small a model move too far for the proof's bound of 16 bits.
    serving = served(run, tmp_path, cli_env, "--no-prove")
    with serving as told, OpenAI(base_url=told["url"], api_key="no-key-here") as client:
        messages: Any = [{"role": "user", "content": "Sky?"}]
        [choice] = client.chat.completions.create(model=run, messages=messages, temperature=0).choices
        assert (choice.message.content, choice.finish_reason) == ("blue", "stop")
        assert (choice.message.model_extra or {}).get("reasoning_content") == reasoning
        messages, tools = [{"role": "user", "content": "Town?"}], cast("Any", [LOOK])
        [choice] = client.chat.completions.create(
            model=run, messages=messages, tools=tools, temperature=0
        ).choices
        [call] = choice.message.tool_calls or []
        assert call.type == "function" and call.function.name == "look" and not choice.message.content

    made = cli("export", "last", "out", "--to", "merged", "--no-prove")
    assert made.code == 0, made.err
    [provenance] = (tmp_path / "home").rglob("full/passport.json")
    template = provenance.with_name("chat_template.jinja").read_bytes()
    assert (tmp_path / "out" / "chat_template.jinja").read_bytes() == template
    config = json.loads((tmp_path / "out" / "generation_config.json").read_bytes())
    ends = AutoTokenizer.from_pretrained(base).convert_ids_to_tokens(config["eos_token_id"])
    assert ("<|im_end|>" if family == "thinks" else "<|call|>") in ends

    asked = ("eval", "last", "--test", "test.jsonl", "--no-base", "--json")
    evaluated = cli(*asked, *(() if family == "thinks" else ("--batch", "1"))).json
    [measure] = [m for m in evaluated["measures"] if m["metric"] == "exact_match"]
    assert (measure["score"]["value"], measure["score"]["n"]) == (1.0, 3)
    assert evaluated["sampling"]["batch"] == (None if family == "thinks" else 1)
    if family == "channels":
        short = cli(*asked, "--max-tokens", "2").json
        assert any("3 of 3 answers: cut" in note for note in short["notes"])
