"""Models that think before they answer, trained for a few steps: what evaluation, training by rewards and
chat make of their answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tests.unit.local.sessions import EXACT, make_session
from tests.unit.local.thinkers import CHANNELS, make_family, write_rows

from orchestrate.data import Dataset
from orchestrate.data.rows import ChatMessage
from orchestrate.errors import DataError
from orchestrate.evaluation.contenders import by_generator
from orchestrate.evaluation.evaluate import EvaluationTerms, Subject, evaluate
from orchestrate.evaluation.held_out import held_out
from orchestrate.evaluation.metrics import Context, registry
from orchestrate.evaluation.verdict import Demand
from orchestrate.local.answers.engine import Engine, Loading, PromptsRequest
from orchestrate.local.objectives.grpo import PolicyObjective
from orchestrate.local.weights.worker import dress
from orchestrate.paid.paid_requests import Asking
from orchestrate.types import Contender, Message, Reply, Sampling

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
COLOURS = {"Sky?": "blue", "Grass?": "green", "Snow?": "white"}
LOOK = {"id": "call_0", "type": "function", "function": {"name": "look", "arguments": '{"at": "town"}'}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks.",
            "parameters": {
                "type": "object",
                "properties": {"at": {"type": "string", "description": "Where."}},
            },
        },
    }
]


END = {"channels": {"<|return|>", "<|call|>"}, "thinks": {"<|im_end|>"}}
"""What ends a turn, or a call."""


class Trained:
    """A family's model, tuned to answer about colours, and to look at towns."""

    adapter = None
    expected_precision = None
    four_bit = False

    def __init__(self, family: str, folder: Path) -> None:
        self.family, self.folder = family, folder
        self.base = make_family(family, folder / "base", repetition_penalty=3.0, no_repeat_ngram_size=1)
        thought = {"reasoning": "hm hm"} if family == "channels" else {}
        rows: list[tuple[str, dict[str, Any]]] = [
            (question, {"content": colour, **thought}) for question, colour in COLOURS.items()
        ]
        rows.append(("Town?", {"content": "", "tool_calls": [LOOK]}))
        self.rows = write_rows(folder / "rows.jsonl", rows * 4)
        self.test = write_rows(folder / "test.jsonl", rows[:3])
        session = make_session(
            folder,
            self.rows,
            method={"type": "sft"},
            adapter={"type": "full"},
            model=str(self.base),
            hyper={"epochs": 12, "batch_size": 4, "checkpoints": 1},
        )
        session.loop.restore()
        session.loop.run()
        self.tuned = session.publish()
        session.close()
        self.answerer = Engine(Loading(base=str(self.base), models={"tuned": str(self.tuned)}, threads=1))

    def ask(self, *questions: str, **more: Any) -> list[Reply]:
        asked = [[{"role": "user", "content": question}] for question in questions]
        replies = self.answer(asked, **more)
        for reply in replies:
            if isinstance(reply, DataError):
                raise reply
        return [reply for reply in replies if isinstance(reply, Reply)]

    def answer(self, prompts: Sequence[Any], **more: Any) -> list[Reply | DataError]:
        sent: list[dict[str, Any]] = []
        request = {"model": "tuned", "prompts": prompts, "seed": 0, "max_tokens": 40, "temperature": 0.0}
        self.answerer.answer(msgspec.convert({**request, **more}, PromptsRequest), sent.append)
        return [
            DataError(told["refused"]) if "refused" in told else Reply.from_dict(told)
            for told in sent[-1]["replies"]
        ]

    def attempt(self, prompts: Sequence[Sequence[Message]], **more: Any) -> list[Reply | DataError]:
        """As `Generator` does, whose process an `Engine` is."""
        return self.answer([[m.to_dict() for m in prompt] for prompt in prompts], **more)

    def likelihoods(self, rows: Sequence[Any], *, base: bool = False) -> Any:
        raise NotImplementedError  # only a metric of likelihood asks for it


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in ("channels", "thinks")]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(request.param, tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@pytest.mark.parametrize(("max_tokens", "score"), [(40, 1.0), (4, 0.0)])
def test_an_evaluation_is_of_the_answer(
    trained: Trained, tmp_path: Path, max_tokens: int, score: float
) -> None:
    items = held_out(Dataset.open(str(trained.test))).items
    sampling = Sampling(max_tokens=max_tokens)
    contender = Contender(name="tuned", kind="tuned", model="m", provider="local", served_by="here")
    generator: Any = trained
    candidate = by_generator(contender, generator, sampling, "weights", base=False)
    nobody: Any = None
    asking = Asking(tmp_path / "answers")
    metrics = registry.make(["exact_match"], Context(items, asking, nobody, nobody))
    terms = EvaluationTerms(metrics, sampling, {}, Demand())
    result = evaluate("e", Subject(items, "t", "d"), [candidate], terms, asking, tmp_path / "items.jsonl")
    found = result.score("tuned")
    assert found is not None and (found.value, found.n) == (score, 3)
    assert bool(result.notes) is (score == 0)
    assert all(note.startswith("tuned: 3 of 3 answers: cut") for note in result.notes)


@pytest.mark.slow
def test_a_reward_is_of_the_answer(trained: Trained, tmp_path: Path) -> None:
    with (tmp_path / "prompts.jsonl").open("w", encoding="utf-8") as out:
        for question, colour in COLOURS.items():
            row = {"messages": [{"role": "user", "content": question}], "answer": colour}
            out.write(json.dumps(row) + "\n")
    session = make_session(
        tmp_path,
        tmp_path / "prompts.jsonl",
        method={"type": "rft", "grader": EXACT, "samples_per_prompt": 2},
        adapter={"type": "lora"},
        model=str(trained.tuned),
        hyper={"max_new_tokens": 40},
    )
    objective = session.loop.objective
    assert isinstance(objective, PolicyObjective)
    values = objective.evaluate(session.loop.train, 4096)
    assert (values["valid_reward"], values["valid_cut_answers"]) == (1.0, 0.0)
    session.close()


def test_a_reply_has_thinking_and_calls_apart(trained: Trained) -> None:
    sky, town = trained.ask("Sky?", "Town?")
    thought = "hm hm" if trained.family == "channels" else None
    assert (sky.content, sky.reasoning, sky.tool_calls, sky.finish_reason) == ("blue", thought, (), "stop")
    assert (town.content, town.tool_calls, town.finish_reason) == ("", (LOOK,), "tool_calls")


def test_the_likeliest_token_is_the_models_own(trained: Trained) -> None:
    """The judge is a plain loop; the model's own settings forbid to repeat any token."""
    answerer, model = trained.answerer.models["tuned"], trained.answerer.model
    prompt = answerer.template.asked([ChatMessage(role="user", content="Sky?")], None)
    drawn: list[int] = []
    while len(drawn) < 40 and (not drawn or drawn[-1] not in answerer.sampler.stops):
        with torch.no_grad():
            drawn.append(int(model(input_ids=torch.tensor([prompt + drawn])).logits[0, -1].argmax()))
    [reply] = trained.ask("Sky?")
    assert reply.completion_tokens == len(drawn)
    said = answerer.template.said(drawn[:-1], prompt)
    assert (reply.content, reply.reasoning) == (said.content, said.reasoning)
    assert len(set(drawn)) < len(drawn) or trained.family == "thinks"  # something was repeated
    assert model.generation_config.repetition_penalty == 3.0


@pytest.mark.slow
def test_an_answer_that_is_cut_says_so(trained: Trained) -> None:
    length = trained.ask("Sky?")[0].completion_tokens or 0
    [begun] = trained.ask("Sky?", max_tokens=3)
    assert (begun.content, begun.finish_reason) == ("", "length")
    [almost] = trained.ask("Sky?", max_tokens=length - 1)
    assert (almost.content, almost.finish_reason) == ("blue", "length")
    if trained.family == "channels":
        cut = [trained.ask("Sky?", max_tokens=n)[0] for n in range(3, length)]
        thinking = [reply for reply in cut if reply.reasoning and not reply.content]
        assert len(thinking) > 3
        assert {r.notes for r in thinking} == {("cut off during reasoning, before the answer",)}
        assert all("blue".startswith(r.content) for r in cut)


@pytest.mark.slow
def test_a_batch_changes_no_answer(trained: Trained) -> None:
    questions = [*COLOURS, "Sky? " * 9 + "Grass?", "Town?"]
    alone = [trained.ask(question)[0] for question in questions]
    assert trained.ask(*questions, batch=1) == alone
    assert [r.content for r in trained.ask(*questions)] == [r.content for r in alone]


def test_questions_that_fill_the_context_are_refused(trained: Trained) -> None:
    context = trained.answerer.models["tuned"].sampler.context
    assert context == 1024
    long = "Sky? " * 1024
    told = r"the prompt has \d+ tokens, which leaves no room for an answer in the context of 1024 tokens"
    with pytest.raises(DataError, match=told):
        trained.ask(long)
    refused, answered = trained.attempt([[Message(role="user", content=q)] for q in (long, "Sky?")])
    assert isinstance(refused, DataError) and isinstance(answered, Reply) and answered.content == "blue"
    size = (trained.ask("Sky?")[0].prompt_tokens or 0) - 1
    per = (trained.ask("Sky? Sky?")[0].prompt_tokens or 0) - size - 1
    nearly = "Sky? " * ((context - size - 4) // per)
    [reply, short] = trained.ask(nearly, "Sky?", max_tokens=400)
    assert context - 8 < (reply.prompt_tokens or 0) + (reply.completion_tokens or 0) <= context
    assert reply.finish_reason == "stop" or reply.notes == (
        "cut off at the model's context length of 1024 tokens",
    )
    assert short.content == "blue"


def test_a_stream_has_the_answer_alone(trained: Trained) -> None:
    for question, content in (("Sky?", "blue"), ("Town?", "")):
        sent: list[dict[str, Any]] = []
        asked = {
            "model": "tuned",
            "prompts": [[{"role": "user", "content": question}]],
            "seed": 0,
            "stream": True,
        }
        asked |= {"max_tokens": 40, "temperature": 0.0}
        trained.answerer.answer(msgspec.convert(asked, PromptsRequest), sent.append)
        *pieces, last = sent
        assert all(piece["piece"] for piece in pieces)
        assert "".join(piece["piece"] for piece in pieces) == last["replies"][0]["content"] == content


@pytest.mark.slow
def test_what_the_template_goes_by_goes_with_the_model(trained: Trained, tmp_path: Path) -> None:
    """From the job to the rows, the result's files as anybody reads them, and the questions of a chat."""
    from transformers import AutoTokenizer

    if trained.family == "channels":
        own = CHANNELS.replace("m.reasoning_content and loop.last", "false")
        own = own.replace("'<|start|>assistant'", "'<|start|>assistant<|channel|>final<|message|>'")
        asked: dict[str, Any] = {"chat_template": own}
        opened = "<|start|>assistant<|channel|>final<|message|>"
    else:
        asked = {"chat_template_kwargs": {"enable_thinking": False}}
        opened = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    session = make_session(
        tmp_path,
        trained.rows,
        method={"type": "sft"},
        adapter={"type": "lora"},
        model=str(trained.base),
        hyper={"epochs": 1, "max_seq_length": 64},
        **asked,
    )
    ids, weights = session.loop.train.row(0)
    learnt = session.tokenizer.decode([i for i, w in zip(ids, weights, strict=True) if w])
    assert learnt == ("blue<|return|>" if trained.family == "channels" else "blue<|im_end|>")
    session.loop.restore()
    session.loop.run()
    folder = session.publish()
    session.close()
    provenance = json.loads((folder / "passport.json").read_text())
    assert provenance["chat_template_kwargs"] == asked.get("chat_template_kwargs", {})
    assert provenance["chat_template_given"] is ("chat_template" in asked)
    dressed = tmp_path / "dressed"
    dressed.mkdir()
    told = dress(str(trained.base), str(folder), str(dressed))
    template = (folder / "chat_template.jinja").read_bytes()
    assert (dressed / "chat_template.jinja").read_bytes() == template
    assert template != (trained.base / "chat_template.jinja").read_bytes()
    config = json.loads((dressed / "generation_config.json").read_bytes())
    assert (config["repetition_penalty"], config["no_repeat_ngram_size"]) == (3.0, 1)
    assert config["eos_token_id"] == told["stops"] and END[trained.family] <= set(told["stop_words"])
    talk = [{"role": "user", "content": "Sky?"}]
    read: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert read.apply_chat_template(talk, add_generation_prompt=True, tokenize=False).endswith(opened)
    answerer = Engine(Loading(base=str(trained.base), models={"tuned": str(folder)}, threads=1))
    template = answerer.models["tuned"].template
    prompt = template.asked([ChatMessage(**one) for one in talk], None)
    assert prompt == read.apply_chat_template(talk, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.said(template.tokenizer("blue")["input_ids"], prompt).content == "blue"
    sent: list[dict[str, Any]] = []
    talks = [[{"role": "user", "content": "Sky? " * n}] for n in (1, 60)]
    asked_of = {
        "model": "tuned",
        "prompts": talks,
        "seed": 0,
        "max_tokens": 4,
        "temperature": 0.0,
    }
    answerer.answer(msgspec.convert(asked_of, PromptsRequest), sent.append)
    short, long = (reply["notes"] for reply in sent[-1]["replies"])
    told = "the prompt is longer than the training run's max_seq_length (64 tokens)"
    assert told in long and told not in short
