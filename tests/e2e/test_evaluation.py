"""Real runs of the tiny model: one that wins, one that learnt nothing, and what the winner forgot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.paths import TINY
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrate import JobSpec, Orchestrator, RunHandle
from orchestrate.errors import UsageError
from orchestrate.evaluation import regression
from orchestrate.evaluation.evaluate import read_items
from orchestrate.local import Generator
from orchestrate.local.model.loader import DTYPES
from orchestrate.reports.rows import contender_rows
from orchestrate.runs.evaluation.held_out import report
from orchestrate.runs.evaluation.regression import PreparedRegression, RegressionOrder
from orchestrate.settings.config import load
from orchestrate.types import Evaluation, Message, Sampling

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("quick_python"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
]

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


@pytest.fixture(scope="module")
def in_four_bits(ft: Orchestrator, tmp_path_factory: pytest.TempPathFactory) -> RunHandle:
    """A run that was trained on its base in NF4, and hardly changed it."""
    folder = tmp_path_factory.mktemp("qlora")
    train, test = rows(folder / "train.jsonl", 0, 16), rows(folder / "test.jsonl", 100, 140)
    spec = JobSpec.parse(
        {"model": str(TINY), "train": str(train), "test": str(test), "adapter": "qlora", "epochs": 1}
    )
    found = ft.submit(spec, "local", again=True)
    found.wait()
    return found


def greedy(model: Any, tokenizer: Any, prompt: Sequence[Message], most: int) -> str:
    """What transformers itself says."""
    ids = tokenizer.apply_chat_template(
        [m.to_dict() for m in prompt], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    said = model.generate(ids, do_sample=False, max_new_tokens=most, eos_token_id=ends)
    return tokenizer.decode(said[0, ids.shape[1] :], skip_special_tokens=True)


def test_an_evaluation_says_what_the_adapter_costs(ft: Orchestrator, runs: dict[str, RunHandle]) -> None:
    run = runs["idle"].id
    order: dict[str, Any] = {"metrics": ["exact_match"], "limit": 3, "sampling": Sampling(max_tokens=4)}
    assert ft.evaluate([run], **order, base=False).adapter_costs == (), "nothing to compare it with"
    found = ft.evaluate([run], **order, fresh=True)
    [cost] = found.adapter_costs
    assert cost.model == run
    assert all(seconds > 0 for seconds in (cost.load_s, cost.token_s, cost.base_token_s))
    assert cost.load_s > cost.token_s, "reading files and preparing modules takes longer than a token"
    for format in ("table", "md", "html"):
        page = " ".join(report(found).render(format).split())
        assert f"loading the adapter took {1000 * cost.load_s:.0f} ms once" in page
    assert json.loads(report(found).render("json"))["adapter_costs"] == [cost.to_dict()]
    again = ft.evaluate([run], **order)
    assert again.adapter_costs == (cost,), "of the evaluation that the answers are from"


def test_the_rival_of_a_qlora_run_is_its_base_in_16_bits(
    ft: Orchestrator, in_four_bits: RunHandle, tmp_path: Path
) -> None:
    most = 16
    order: dict[str, Any] = {"metrics": ["exact_match"], "sampling": Sampling(max_tokens=most, batch=1)}
    found = ft.evaluate([in_four_bits.id], **order, base_precision="both")
    base, other = (c for c in found.contenders if c.kind == "base")
    assert found.contenders[0].precision == other.precision == "NF4 (4 bits)"
    assert base.precision in DTYPES and other.name == f"{base.name} in NF4"
    assert {d.contender: d.against for d in found.differences} == {
        in_four_bits.id: base.name,
        other.name: base.name,
    }
    assert [v.contender for v in found.verdicts] == [in_four_bits.id]
    assert any(
        note.startswith(f"effect of quantization before any training: {other.name}") for note in found.notes
    )

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=DTYPES[base.precision]).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    answered = read_items(Path(found.items_file or ""))
    said = {name: [one.answers[name][0].text for one in answered] for name in (base.name, other.name)}
    own = [greedy(model, tokenizer, one.item.prompt, most) for one in answered]
    assert said[base.name] == own
    assert said[other.name] != own, "4 bits answer differently, or this shows nothing"

    again = ft.evaluate([in_four_bits.id], **order, base_precision="nf4")
    assert [c.name for c in again.contenders] == [in_four_bits.id, other.name]
    for format in ("html", "md", "csv"):
        page = ft.compare([in_four_bits]).render(format)
        assert "NF4" in page, format
    for line in contender_rows(found):
        assert any(f", in {precision}" in line[1] for precision in ("NF4 (4 bits)", base.precision))
    named = ft.evaluate(
        [], rows(tmp_path / "few.jsonl", 0, 3), models=[f"local={TINY}:nf4", f"local={TINY}:16-bit"], **order
    )
    assert [c.precision for c in named.contenders] == ["NF4 (4 bits)", base.precision]
    with pytest.raises(UsageError, match="cannot be chosen"):
        ft.evaluate([in_four_bits.id], **order, base_precision="nf4", on="together")


def test_forgetting_is_measured_against_the_base_in_16_bits(
    ft: Orchestrator, in_four_bits: RunHandle
) -> None:
    found = ft.regress(in_four_bits.id, probes=["general-text"])
    damaged = ft.regress(in_four_bits.id, probes=["general-text"], base_precision="nf4")
    assert (found.tuned.precision, damaged.base.precision) == ("NF4 (4 bits)", "NF4 (4 bits)")
    assert found.base.precision in DTYPES
    assert damaged.results[0].tuned.value == found.results[0].tuned.value
    with Generator(str(TINY), threads=1) as plain:
        [probe] = [one for one in regression.built_in() if one.name == "general-text"]
        texts = [{"text": item.expected} for item in probe.items]
        told = plain.likelihoods(texts, base=True)
    nats = sum(one.nats / one.tokens for one in told) / len(told)
    assert found.results[0].base.value == pytest.approx(nats, rel=1e-3)
    assert damaged.results[0].base.value != pytest.approx(nats, rel=1e-3)


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
    assert not found.settled and any("general training rows" in line for line in found.advice)
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
        pytest.raises(UsageError, match="could not read the data of lost") as told,
    ):
        prepared.run()
    assert "local files" in (told.value.fix or "")
