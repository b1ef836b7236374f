"""Recipes over a session: against jobs on this machine, plain torch, and the sandboxed hosts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.paths import ROOT, TINY
from tests.unit.local.sessions import make_session
from tests.unit.sessions import recipe_rows
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import OPTIONS
from tests.unit.sessions.recipe_rows import GRADER, HALF, SETTINGS

from orchestrate import Orchestrator, UsageError, sandbox
from orchestrate.errors import DataError, RunFailed
from orchestrate.providers.sessions import OBJECTIVES
from orchestrate.sessions import recipes

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def ft(tmp_path_factory: pytest.TempPathFactory, quick_python: None) -> Iterator[Orchestrator]:
    with workspace(tmp_path_factory.mktemp("home")) as ft, opened(ft):  # keeps the base loaded
        yield ft


def opened(ft: Orchestrator, **more: Any) -> Any:
    return ft.session(str(TINY), **{"lora": HALF, "options": OPTIONS, **more})


def points(ft: Orchestrator, id: str) -> list[dict[str, float]]:
    return [point.values for point in ft.run(id).metrics()]


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_a_recipe_has_the_losses_of_a_job_even_when_it_is_interrupted(
    ft: Orchestrator, tmp_path: Path, name: str
) -> None:
    write = recipe_rows.chats if name == "sft" else recipe_rows.preferences
    file = write(tmp_path / "rows.jsonl")
    # Without it, Adam moves a weight at first by the sign of its gradient, which rounding decides around 0.
    alike = {**SETTINGS, "eps": 1e-4}
    job = make_session(
        tmp_path,
        file,
        method={"type": name},
        adapter={"type": "lora", "r": HALF["rank"], "alpha": 32.0},
        hyper=alike,
        validation=str(file),
        seed=HALF["seed"],
        precision="fp32",
    )
    job.loop.run()
    recipe, settings = getattr(recipes, name), {**alike, "seed": HALF["seed"], "validation": file}
    with pytest.raises(ZeroDivisionError), opened(ft) as s:
        s.log = fails_at(3, s)
        recipe(s, file, **settings)
    assert ft.run(s.id).refresh().status.value == "paused"
    last: dict[str, float] = {}
    with pytest.raises(ZeroDivisionError), ft.session(resume=s.id) as again:
        assert again.step == 3
        last = recipe(again, file, **settings)
        raise ZeroDivisionError
    with ft.session(resume=s.id) as again:
        known = recipe(again, file, **settings)
        assert again.step == 4, "what has ended trains nothing more where it is resumed"
    assert {name: known[name] for name in last} == pytest.approx(last)
    by_job, by_recipe = [p.values for p in job.run.metrics()], points(ft, s.id)
    assert len(by_recipe) == len(by_job) == 4
    for theirs, ours in zip(by_job, by_recipe, strict=True):
        # Steps in which the interruption lost the evaluation have none.
        shared = theirs.keys() & ours.keys() - {"tokens", "tokens_per_second"}
        assert {"train_loss", "learning_rate", "grad_norm"} <= shared
        for value in shared:
            assert ours[value] == pytest.approx(theirs[value], rel=1e-4, abs=1e-5), value
    assert "valid_loss" in by_recipe[1] and "valid_loss" in by_recipe[3]
    assert ft.run(s.id).record.total_steps == 4
    assert [one.step for one in ft.run(s.id).checkpoints()] == [2, 3, 4]


def fails_at(step: int, session: Any) -> Any:
    log = session.log

    def failing(values: Any) -> None:
        log(values)
        if session.step == step:
            raise ZeroDivisionError

    return failing


def test_a_recipe_that_began_behind_the_last_save_begins_again(ft: Orchestrator, tmp_path: Path) -> None:
    chats, more = recipe_rows.chats(tmp_path / "rows.jsonl"), recipe_rows.chats(tmp_path / "more.jsonl", 6)
    settings: dict[str, Any] = {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-3}
    with pytest.raises(ZeroDivisionError), opened(ft) as s:
        recipes.sft(s, chats, **settings)
        s.log = fails_at(3, s)
        recipes.sft(s, more, **settings)
    shutil.rmtree(Path(s.folder) / "checkpoints")
    with ft.session(resume=s.id) as again:
        assert again.step == 0
        recipes.sft(again, more, **settings)
        assert again.step == 2
    assert all(values["learning_rate"] > 0 for values in points(ft, s.id))
    assert [e.level for e in ft.run(s.id).events() if e.type == "recipe"] == ["warning"]


@pytest.fixture
def drawn() -> list[tuple[list[int], Any]]:
    return []


def spied(session: Any, drawn: list[tuple[list[int], Any]]) -> None:
    """Keep the prompt and the answers of each sample."""
    sample = session.futures.sample

    def sampling(prompt: list[int], *args: Any) -> Any:
        made = sample(prompt, *args)
        drawn.append((prompt, made.result().sequences))
        return made

    session.futures.sample = sampling


def model_of(folder: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    return PeftModel.from_pretrained(base, folder, is_trainable=True)


def log_p(model: Any, prompt: list[int], answer: list[int]) -> Any:
    """The log-probabilities of the answer's tokens."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = model(input_ids=ids).logits[0, :-1]
    found = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return found[len(prompt) - 1 :]


def norm_of(model: Any, loss: Any) -> float:
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(torch.stack([g.norm() for g in gradients if g is not None]).norm())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_rl_has_the_gradient_of_grpo_by_hand(
    ft: Orchestrator, tmp_path: Path, drawn: list[tuple[list[int], Any]], objective: str
) -> None:
    file = recipe_rows.prompts(tmp_path / "prompts.jsonl")
    with opened(ft) as s:
        start = s.save("start")
        spied(s, drawn)
        recipes.rl(
            s,
            file,
            grader=GRADER,
            run_grader_code=True,
            objective=objective,
            max_steps=1,
            batch_size=2,
            samples_per_prompt=4,
            max_new_tokens=6,
        )
        tokenizer = s.tokenizer()
    model, loss, rewards = model_of(start.path), torch.zeros(()), list[float]()
    count = sum(len(one.tokens) for _, answers in drawn for one in answers)
    for prompt, answers in drawn:
        texts = [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in answers]
        group = torch.tensor([overlap(text) for text in texts])
        rewards += group.tolist()
        advantages = (group - group.mean()) / (group.std() + 1e-4)
        for one, advantage in zip(answers, advantages, strict=True):
            now, then = log_p(model, prompt, one.tokens), torch.tensor(one.logprobs)
            loss = loss - gained(objective, now, then, advantage).sum() / count
    [point] = points(ft, s.id)
    assert len(drawn) == 2 and len(set(rewards)) > 1, "rewards that tell nothing apart judge nothing"
    assert point["train_reward"] == pytest.approx(sum(rewards) / len(rewards), abs=1e-6)
    assert point["loss_sum"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert point["grad_norm"] == pytest.approx(norm_of(model, loss), rel=1e-4)
    assert point["train_answer_tokens"] == count / 8
    assert point["sampled_logprob_difference"] < 1e-4, "of the answers, not of the prompts"


def gained(objective: str, now: Any, then: Any, advantage: Any) -> Any:
    """By the formulas of the papers, for each token of an answer."""
    ratio = (now - then).exp()
    if objective == "importance_sampling":
        return ratio * advantage
    if objective == "cispo":
        return ratio.detach().clamp(0.8, 1.2) * now * advantage
    if objective == "dro":
        return now * advantage - 0.05 / 2 * (now - then) ** 2
    if objective == "gspo":
        ratio = (now.detach() - then).mean().exp() * (now - now.detach()).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)


def overlap(text: str) -> float:
    """The grader by hand: the share of letters `a`."""
    return text.count("a") / max(len(text), 1)


def test_distill_has_the_gradient_of_the_reverse_kl_by_hand(
    ft: Orchestrator, tmp_path: Path, drawn: list[tuple[list[int], Any]]
) -> None:
    file = recipe_rows.prompts(tmp_path / "prompts.jsonl")
    chats = recipe_rows.chats(tmp_path / "chats.jsonl")
    with opened(ft) as teacher, opened(ft) as s:
        recipes.sft(teacher, chats, **{**SETTINGS, "learning_rate": 1e-2})
        taught, start = teacher.save("taught"), s.save("start")
        spied(s, drawn)
        recipes.distill(s, file, teacher=teacher, max_steps=1, batch_size=2, max_new_tokens=6)
        with torch.no_grad():
            wise = model_of(taught.path)
            said = [[log_p(wise, prompt, one.tokens) for one in answers] for prompt, answers in drawn]
        del s.futures.sample
        recipes.distill(
            s,
            file,
            teacher=teacher,
            max_steps=8,
            batch_size=2,
            samples_per_prompt=8,
            max_new_tokens=6,
            learning_rate=1e-2,
        )
    model, loss, apart = model_of(start.path), torch.zeros(()), list[float]()
    count = sum(len(one.tokens) for _, answers in drawn for one in answers)
    for (prompt, answers), told in zip(drawn, said, strict=True):
        for one, teacher_p in zip(answers, told, strict=True):
            student = log_p(model, prompt, one.tokens)
            difference = (student - teacher_p).detach()
            apart += difference.tolist()
            loss = loss + (difference * student).sum() / count
    first, *later = points(ft, s.id)
    assert first["train_reverse_kl"] == pytest.approx(sum(apart) / count, rel=1e-4)
    assert first["grad_norm"] == pytest.approx(norm_of(model, loss), rel=1e-4)
    assert later[-1]["train_reverse_kl"] < 0.8 * first["train_reverse_kl"], "it moves towards its teacher"


def test_where_all_rewards_are_equal_nothing_is_trained_nor_sent(ft: Orchestrator, tmp_path: Path) -> None:
    file = recipe_rows.prompts(tmp_path / "prompts.jsonl")
    with opened(ft) as s:
        before = s.save("before")
        recipes.rl(
            s,
            file,
            grader=compares("nothing says this"),
            max_steps=2,
            batch_size=2,
            samples_per_prompt=2,
            max_new_tokens=2,
        )
        after = s.save("after")
    weights = [(Path(one.path) / "adapter_model.safetensors").read_bytes() for one in (before, after)]
    assert weights[0] == weights[1]
    found = points(ft, s.id)
    seen = [[one[name] for name in ("train_reward", "train_equal_rewards", "tokens")] for one in found]
    assert seen == [[0, 1, 0]] * 2


def test_what_a_recipe_does_not_have_is_refused_by_name(ft: Orchestrator, tmp_path: Path) -> None:
    chats, asked = (
        recipe_rows.chats(tmp_path / "chats.jsonl"),
        recipe_rows.prompts(tmp_path / "prompts.jsonl"),
    )
    with opened(ft) as s:
        for recipe, file, more, told in (
            (recipes.sft, chats, {"packing": True}, "'packing'"),
            (recipes.sft, chats, {"epochs": "many"}, "epochs"),
            (recipes.dpo, chats, {"loss": "kto"}, "KTO"),
            (recipes.dpo, chats, {}, "preference rows, but the file has chat rows"),
            (recipes.rl, asked, {"grader": GRADER, "kl_beta": 0.1}, "kl_beta"),
            (
                recipes.rl,
                asked,
                {"grader": GRADER, "run_grader_code": True, "samples_per_prompt": 1},
                "at least 2",
            ),
            (recipes.rl, asked, {"grader": {"type": "score_model"}}, "score_model"),
            (recipes.sft, chats, {"learning_rate": -1.0}, "learning_rate"),
            (recipes.sft, chats, {"learning_rate": float("nan")}, "learning_rate"),
            (recipes.sft, chats, {"batch_size": 0}, "batch_size"),
            (recipes.sft, chats, {"epochs": 0}, "epochs"),
            (recipes.sft, chats, {"epochs": None}, "max_steps"),
            (recipes.dpo, chats, {"beta": -1.0}, "beta"),
            (recipes.rl, asked, {"grader": GRADER, "max_new_tokens": 0}, "max_new_tokens"),
            (recipes.rl, asked, {"grader": GRADER, "objective": "grpo"}, "'grpo'"),
            (recipes.rl, asked, {"grader": compares("{{item.word}}")}, "item.word, but row 1 of 2"),
            (recipes.rl, asked, {"grader": returns("item['word']"), **CODE}, "item.word, but row 1 of 2"),
            (recipes.rl, asked, {"grader": returns("1 +"), **CODE}, "SyntaxError.*Nothing was sampled"),
            (recipes.rl, asked, {"grader": takes("sample, row"), **CODE}, "TypeError.*Nothing was sampled"),
            (recipes.rl, asked, {"grader": GRADER}, "run_grader_code=True"),
        ):
            with pytest.raises((UsageError, RunFailed, DataError), match=told):
                recipe(s, file, **more)  # type: ignore[operator]
        assert s.step == 0 and s.cost_usd == 0 and not points(ft, s.id)
        with pytest.raises(RunFailed, match="every answer: SyntaxError"):  # of what was sampled
            recipes.rl(s, asked, grader=returns("eval(sample['output_text'] + '(')"), **CODE)
        with pytest.raises(RunFailed, match=r"row 1 got a reward of -?1e\+308"):
            recipes.rl(s, asked, grader=returns("(-1) ** len(sample['output_text']) * 1e308"), **CODE)
        assert s.step == 0


CODE: dict[str, Any] = {"run_grader_code": True, "max_steps": 1, "max_new_tokens": 2}


def returns(value: str) -> dict[str, str]:
    return {"type": "python", "source": f"def grade(sample, item):\n    return {value}"}


def takes(arguments: str) -> dict[str, str]:
    return {"type": "python", "source": f"def grade({arguments}):\n    return 1.0"}


def compares(reference: str) -> dict[str, str]:
    given = {"input": "{{sample.output_text}}", "reference": reference, "operation": "eq"}
    return {"type": "string_check", "name": "same", **given}


def test_max_steps_alone_decides_how_long_it_trains(ft: Orchestrator, tmp_path: Path) -> None:
    with opened(ft) as s:
        last = recipes.sft(s, recipe_rows.chats(tmp_path / "rows.jsonl", 2), max_steps=5, batch_size=2)
        assert s.step == 5, "more than the default number of epochs"
        last = recipes.sft(s, tmp_path / "rows.jsonl", max_steps=5, batch_size=2)
        assert s.step == 10, "the same call again trains on"
    assert last["train_loss"] == pytest.approx(points(ft, s.id)[-1]["train_loss"], rel=1e-6)


def test_the_documented_recipes_run(tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sessions.md").read_text(), re.DOTALL)[1]
    recipe_rows.chats(tmp_path / "chats.jsonl")
    recipe_rows.preferences(tmp_path / "pairs.jsonl")
    env = {**os.environ, "MODEL": str(TINY), "ORCHESTRATE_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", block], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("step 6 loss 0.6")


def test_the_same_recipes_here_and_at_sandboxed_hosts(tmp_path: Path, quick_python: None) -> None:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    with sandbox.running(home=tmp_path / "sandbox") as box:
        done = subprocess.run(
            [sys.executable, "-m", "tests.unit.sessions.recipes_at", str(tmp_path)],
            env={**clean, **box.env},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=1200,
        )
    assert done.returncode == 0, done.stderr[-3000:]
    said = {one["what"]: one["value"] for one in map(json.loads, done.stdout.splitlines())}
    here = said["here"]["points"]
    for host in ("tinker", "together"):
        there = said[host]["points"]
        assert len(there) == len(here) == 5 and said[host]["total"] == 5
        assert "valid_loss" in there[1] and "train_reward_margin" in there[3]
        for ours, theirs in zip(here[:4], there[:4], strict=True):
            for name in {"train_loss", "valid_loss", "learning_rate"} & ours.keys():
                assert theirs[name] == pytest.approx(ours[name], rel=1e-5), (host, name)
            assert theirs["cost_usd"] > 0
        assert there[4]["train_answer_tokens"] > 0 and there[4]["sampled_tokens"] > 0
