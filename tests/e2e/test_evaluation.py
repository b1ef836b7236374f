"""Real runs of the tiny model: one that wins, one that learnt nothing, and what the winner forgot."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.paths import TINY

from orchestrate import JobSpec, Orchestrator, RunHandle
from orchestrate.errors import UsageError
from orchestrate.service.evaluation.regression import PreparedRegression, RegressionOrder
from orchestrate.settings.config import load
from orchestrate.types import Evaluation, Sampling

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_python")]

COLOURS = ("blue", "green", "red", "white")
TASK = """
task: {task}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
{more}
metric_list: [{{metric: {metric}, aggregation: mean, higher_is_better: true}}]
"""


def rows(path: Path, first: int, last: int) -> Path:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Item {i}: which colour has the sky?"},
                {"role": "assistant", "content": "blue"},
            ]
        }
        for i in range(first, last)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def ft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    home = tmp_path_factory.mktemp("home")
    with Orchestrator(load(env={"ORCHESTRATE_HOME": str(home)}, cwd=home)) as found:
        yield found


@pytest.fixture(scope="module")
def runs(ft: Orchestrator, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunHandle]:
    folder = tmp_path_factory.mktemp("data")
    train, test = rows(folder / "train.jsonl", 0, 48), rows(folder / "test.jsonl", 100, 160)
    found: dict[str, RunHandle] = {}
    for name, rate in (("good", 0.005), ("idle", 1e-7)):
        spec = JobSpec(
            model=str(TINY), train=str(train), test=str(test), epochs=6, batch_size=8, learning_rate=rate
        )
        found[name] = ft.submit(spec, "local", again=True)
        found[name].wait()
    return found


def decided(evaluation: Evaluation) -> dict[str, str]:
    return {v.contender: v.decision for v in evaluation.verdicts}


def test_one_wins_and_one_does_not(ft: Orchestrator, runs: dict[str, RunHandle]) -> None:
    good, idle = runs["good"].id, runs["idle"].id
    found = ft.evaluate(
        [good, idle],
        metrics=["exact_match", "perplexity"],
        shots=2,
        target=0.5,
        sampling=Sampling(max_tokens=8),
    )
    assert decided(found) == {good: "ship", idle: "do not ship"}
    shots = next(c for c in found.contenders if c.shots == 2)
    plain = next(c for c in found.contenders if c.kind == "base" and not c.shots)
    assert (shots.prompt_tokens or 0) > (plain.prompt_tokens or 0), "examples cost tokens of their own"
    assert len([c for c in found.contenders if c.kind == "base"]) == 2, "one base of both runs is asked once"
    surprise = {c.name: found.score(c.name, "perplexity") for c in found.contenders}
    good_ppl, base_ppl = surprise[good], surprise[plain.name]
    assert good_ppl is not None and base_ppl is not None and good_ppl.value < 1.2 < base_ppl.value
    assert {c.usd for c in found.contenders} == {0}
    told = ft.compare([good, idle])
    assert any("scores higher" in line for line in told.findings), told.findings
    assert told.between[0].pairing.items == 60


def test_what_was_forgotten_is_named(ft: Orchestrator, runs: dict[str, RunHandle], tmp_path: Path) -> None:
    own = rows(tmp_path / "sky.jsonl", 200, 230)
    order = RegressionOrder(probes=["general-text", "format"], sets=[str(own)], max_tokens=24)
    with PreparedRegression(ft, runs["good"].id, order) as prepared:
        found = prepared.run()
    by_name = {r.probe: r for r in found.results}
    assert by_name["general-text"].decision == "forgot" and by_name["general-text"].catastrophic
    assert by_name["sky"].decision == "kept" and by_name["sky"].tuned.value == 1
    assert not found.settled and any("general rows" in line for line in found.advice)
    with PreparedRegression(ft, runs["idle"].id, order) as prepared:
        unchanged = prepared.run()
    assert {r.decision for r in unchanged.results} <= {"kept", "not measurable"} and unchanged.settled
    assert not unchanged.advice
    page = ft.compare([runs["good"]]).render("html")
    assert "shows catastrophic forgetting of general-text" in page


def test_likelihoods_are_those_of_transformers(ft: Orchestrator, runs: dict[str, RunHandle]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from orchestrate.local import Generator

    text, context = "The cat sat on the mat.", "Once upon a time "
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello there"}]
    with Generator(str(TINY)) as generator:
        told = generator.likelihoods(
            [
                {"text": text},
                {"context": context, "text": text},
                {"messages": chat[:1], "answer": "Hello there"},
            ]
        )
    ids = tokenizer(text, return_tensors="pt").input_ids
    both = tokenizer(context + text, return_tensors="pt").input_ids
    skipped = len(tokenizer(context).input_ids)
    written = tokenizer.apply_chat_template(chat, tokenize=False)
    asked = tokenizer(written, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.inference_mode():
        for found, row, before in ((told[0], ids, 1), (told[1], both, skipped)):
            logits = model(row).logits[0, :-1].float()
            nats = torch.nn.functional.cross_entropy(logits, row[0, 1:], reduction="none")[before - 1 :]
            assert found[:2] == (pytest.approx(float(nats.sum()), rel=1e-3), len(nats))
    assert 0 < told[2][1] < asked.shape[1] and told[2][0] > 0


def test_tasks_of_lm_eval_from_local_files(
    ft: Orchestrator, runs: dict[str, RunHandle], tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is optional: pip install lm-eval")
    data = [{"question": f"Item {i}: which colour has the sky?", "answer": "blue"} for i in range(300, 312)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    for name, kind, more, metric in (
        ("written", "generate_until", 'generation_kwargs: {until: ["\\n"]}', "exact_match"),
        ("chosen", "multiple_choice", f"doc_to_choice: {list(COLOURS)}", "acc"),
    ):
        values = {"task": name, "kind": kind, "more": more, "metric": metric}
        (tmp_path / f"{name}.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl", **values))
    order = RegressionOrder(probes=["none"], tasks=["written", "chosen"], tasks_folder=tmp_path, max_tokens=8)
    with PreparedRegression(ft, runs["good"].id, order) as prepared:
        written, chosen = prepared.run().results
    assert (written.probe, written.metric.name, written.tuned.value) == ("lm-eval:written", "exact_match", 1)
    assert (chosen.metric.name, chosen.difference.score.n) == ("acc", 12)
    (tmp_path / "rows.jsonl").unlink()
    lost = {"task": "lost", "kind": "generate_until", "more": "", "metric": "exact_match"}
    (tmp_path / "lost.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl", **lost))
    order = RegressionOrder(probes=["none"], tasks=["lost"], tasks_folder=tmp_path)
    with (
        PreparedRegression(ft, runs["good"].id, order) as prepared,
        pytest.raises(UsageError, match="cannot read the data of lost") as told,
    ):
        prepared.run()
    assert "local files" in (told.value.fix or "")
