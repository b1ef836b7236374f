"""The page about evaluations from where somebody stands who has a tuned model: what it forgot, what people
say of its answers, the training rows of that, and judges that are held against them.

The hosts are those of the sandbox, whose models say here what a test writes; people rate over HTTP.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.chat_host import chat_host
from tests.e2e.test_evaluation import TASK
from tests.e2e.test_pages import Machine, blocks, hosts, machine  # noqa: F401  the fixtures too

from orchestrate.sandbox.jobs import SandboxJob
from orchestrate.sandbox.training import Trainer
from orchestrate.types import Message, Reply

pytestmark = pytest.mark.slow
Writes = Callable[[str, bool], str]
"""(what was asked, whether the tuned model is) -> its answer."""


@pytest.fixture
def saying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Writes], None]:
    def begin(writes: Writes) -> None:
        def reply(
            self: Trainer, job: SandboxJob | None, step: int | None, messages: Sequence[Message], **how: Any
        ) -> Reply:
            said = writes(messages[-1].content or "", job is not None)
            return Reply(content=said, model="none", prompt_tokens=20, completion_tokens=9)

        monkeypatch.setattr(Trainer, "reply", reply)

    return begin


def block(title: str) -> list[str]:
    """The lines of the one that has a command of this name in it."""
    return next(one.lines for one in blocks("evaluation.md") if title in one.text)


def row(question: str, answer: str) -> str:
    turns = (("user", question), ("assistant", answer))
    return f"{json.dumps({'messages': [{'role': role, 'content': text} for role, text in turns]})}\n"


def rows(path: Path, questions: Sequence[str], answer: str) -> None:
    path.write_text("".join(row(question, answer) for question in questions))


def test_which_is_better(machine: Machine) -> None:  # noqa: F811
    shown = [
        {
            "messages": [
                {"role": "user", "content": f"say {n}"},
                {"role": "assistant", "content": f'{{"n": {n}}}'},
            ]
        }
        for n in range(4)
    ]
    lines = [json.dumps({**row, "tag": ["even", "odd"][n % 2]}) + "\n" for n, row in enumerate(shown)]
    (machine.folder / "test.jsonl").write_text("".join(lines))
    spec = {"model": "gpt-4o-mini", "train": "train.jsonl", "test": "test.jsonl", "epochs": 2}
    (machine.folder / "finetune.yaml").write_text(json.dumps(spec))
    run = machine.run("orchestrate submit -p openai --watch --yes").out.strip()
    checkpoint = machine.told(f"orchestrate checkpoints {run}")[0]["id"]
    plain, shots, two, gate = block("orchestrate eval last --shots")
    assert {c["kind"] for c in machine.told(plain)["contenders"]} == {"tuned", "base"}
    assert len(machine.told(shots)["contenders"]) == 4
    asked = two.replace("RUN@CHECKPOINT", f"{run}@{checkpoint}").replace(" RUN ", f" {run} ")
    found = machine.told(asked)
    assert {"odd", "even"} <= {m["slice"].partition(":")[2] for m in found["measures"] if m["slice"]}
    machine.run(gate, codes=(1,))  # nothing was trained: it may not ship
    assert (machine.folder / "eval.xml").exists() and (machine.folder / "eval.md").exists()


def test_what_it_forgot(machine: Machine, saying: Callable[[Writes], None]) -> None:  # noqa: F811
    """Whatever it is asked it gives one answer, which its base gives to half of the questions."""
    saying(lambda asked, tuned: "42" if tuned or "sum" not in asked else "the sum")
    machine.run("orchestrate submit --model gpt-4o-mini --train train.jsonl -p openai --watch --yes")
    rows(machine.folder / "support.jsonl", [f"ticket {n}" for n in range(100)], "42")
    rows(machine.folder / "math.jsonl", [f"sum {n}" for n in range(100)], "the sum")
    (machine.folder / "tasks").mkdir()
    data = [{"question": f"sum {n}", "answer": "the sum"} for n in range(12)]
    (machine.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    until = 'generation_kwargs: {until: ["\\n"]}'
    task = TASK.format(
        task="my_task",
        rows=machine.folder / "rows.jsonl",
        kind="generate_until",
        more=until,
        metric="exact_match",
    )
    (machine.folder / "tasks" / "my_task.yaml").write_text(task)
    probes, own, tasks = block("orchestrate regress")
    plain = json.loads(machine.run(f"{probes} --json").out)
    assert {"format", "arithmetic", "refusals", "languages"} <= {one["probe"] for one in plain["results"]}
    done = machine.run(f"{own} --json", codes=(1,))
    found = {one["probe"]: one["decision"] for one in json.loads(done.out)["results"]}
    assert (found["support"], found["math"]) == ("kept", "forgot")
    assert len(plain["results"]) == len(found) - 2
    [of_lm_eval] = machine.told(tasks)["results"]
    assert (of_lm_eval["probe"], of_lm_eval["decision"]) == ("lm-eval:my_task", "forgot")


def polite(answer: str) -> int:
    return answer.count("please")


def scores(answer: str) -> dict[str, int]:
    return {"correct": 1 + polite(answer) // 2, "tone": 1 + polite(answer)}


def model(asked: str, tuned: bool) -> str:
    """Two writers, each at times the politer one; or a judge who likes what people like."""
    shown = dict(re.findall(r"=+\w+ (answer [\w ]+)\n(.*?)\n\n=", asked, re.DOTALL))
    if rated := shown.get("answer to rate"):
        return json.dumps({"reason": "so polite", "scores": scores(rated)})
    if "answer A" in shown:
        ahead = polite(shown["answer A"]) - polite(shown["answer B"])
        return json.dumps({"reason": "politer", "winner": "A" if ahead > 0 else "B" if ahead else "tie"})
    number = int(asked.split()[-1])
    return f"order {number}" + " please" * (number % 5 if tuned else number * 2 % 5)


def rate(link: str, choose: Callable[[list[str]], dict[str, Any]]) -> int:
    """As the page does, until nothing is open: how many tasks it was."""
    with httpx.Client(timeout=240) as client:

        def act(**asked: Any) -> dict[str, Any]:
            answer = client.post(link, json={"rater": "dee", **asked})
            assert answer.status_code == 200, answer.text
            return answer.json()

        shown = act(action="show")
        while shown["done"] < shown["total"]:
            answers = [answer["text"] for answer in shown["answers"]]
            shown = act(action="rate", task=shown["task"], **choose(answers))
        return shown["total"]


def preferred(answers: list[str]) -> dict[str, Any]:
    return {"choice": "left" if polite(answers[0]) > polite(answers[1]) else "right"}


def test_people_and_the_judges_that_are_held_against_them(
    machine: Machine,  # noqa: F811
    saying: Callable[[Writes], None],
) -> None:
    saying(model)
    machine.run("orchestrate submit --model gpt-4o-mini --train train.jsonl -p openai --watch --yes")
    rows(machine.folder / "test.jsonl", [f"say {n}" for n in range(40)], "order please")
    evaluated, planned, served, results = block("orchestrate review last --plan")
    pairs, answers = block("orchestrate data from-review")
    single, judged, compared = block("judge_pair")
    [kept] = block("orchestrate data judge")
    rubric = next(one for one in blocks("evaluation.md") if one.language == "yaml")
    (machine.folder / "support.yaml").write_text(rubric.text)
    machine.env["KEY"] = "a-key"

    machine.run(evaluated)
    assert "ratings in total" in machine.run(planned).out
    with machine.served(served.replace("8080", "0"), r"cy: (http://\S+/)") as last:
        text = (machine.folder / "served-0").read_text()
        links = dict(re.findall(r"(\w+): (http://\S+/)", text))
        assert [*links] == ["ann", "bo", "cy"] and links["cy"] == last
        for link in links.values():
            assert rate(link, preferred) == 32  # where both wrote the same nobody is asked
    shown = machine.told(results)
    [pair] = shown["pairs"]
    assert (pair["first_better"], pair["second_better"], pair["same"]) == (48, 48, 8)
    review = shown["review"]["id"]
    for line, count in ((pairs, 32), (answers, 64)):
        assert machine.told(line.replace("rev-...", review))["rows"] == count
    machine.run(f"orchestrate review {review} --export pairs.jsonl")

    with machine.served(single, r"http://\S+/") as link:
        rate(link, lambda texts: {"scores": scores(texts[0])})
    review = machine.told("orchestrate review last --single --rubric support.yaml --results")["review"]["id"]
    machine.run(f"orchestrate review {review} --export rated.jsonl")
    with chat_host() as host:
        host.writes = lambda number, body: model(body["messages"][-1]["content"], False)
        elsewhere = compared.replace("https://models.example/v1", host.url)
        for line in (judged.replace("rev-...", review), elsewhere):
            [used] = machine.told(line)["metrics"]
            assert used["unfit"] is None and used["detail"]["calibration"]["kappa"]["value"] == 1
        assert {(body["model"], key) for body, key in zip(host.bodies, host.keys, strict=True)} == {
            ("big", "Bearer a-key")
        }

    given = "".join(row("q", f"a{' please' * (n % 5)}") for n in range(10))
    (machine.folder / "train.jsonl").write_text(given)
    report = machine.told(f"{kept} --yes")
    assert (report["kept"], report["rejected"], report["not_judged"]) == (2, 8, 0)
    assert (machine.folder / "train.judged.jsonl").read_text() == row(
        "q", "a please please please please"
    ) * 2
