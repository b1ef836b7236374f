"""prices, models, quote and advise as their users run them; offline."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.chat_host import chat_host
from tests.paths import BUNDLED

Cli = Callable[..., Any]
ORDERS, TINY = BUNDLED / "orders", BUNDLED / "tiny-chat"

ALWAYS_OPEN = {"OPENAI_API_KEY": "sandbox-tests", "OPENAI_BASE_URL": "http://127.0.0.1:9"}
"""OpenAI takes no new jobs from 2027-01-06 on; a sandbox goes on quoting. Nothing is sent there."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("train", "validation"):
        shutil.copy(ORDERS / f"{name}.jsonl", tmp_path / f"{name}.jsonl")
    (tmp_path / "finetune.yaml").write_text(
        "model: {openai: gpt-4o-mini, default: qwen3.5-9b}\n"
        "train: train.jsonl\nvalidation: validation.jsonl\nepochs: 2\n"
    )
    return tmp_path


def test_prices_list(cli: Cli) -> None:
    found = cli("prices", "list", "--provider", "fireworks", "--method", "sft_lora", "--json")
    assert found.code == 0
    assert [(r.get("upto_b"), r["usd_per_mtok"]) for r in found.json] == [
        ("16", "0.5"),
        ("80", "3"),
        ("300", "6"),
        (None, "10"),
    ]
    old = cli("prices", "list", "--provider", "fireworks", "--method", "deployment", "--all", "--json").json
    now = cli("prices", "list", "--provider", "fireworks", "--method", "deployment", "--json").json
    assert [r["usd_per_gpu_hour"] for r in now if r["gpu"] == "H100"] == ["8"]
    assert {r["usd_per_gpu_hour"] for r in old if r["gpu"] == "H100"} == {"8", "7", "4"}
    assert cli("prices", "list", "--method", "nothing").code == 2


def test_prices_show(cli: Cli) -> None:
    shown = cli("prices", "show", "qwen3.5-9b", "--rate", "together:sft_lora@qwen3.5-9b=0.11")
    assert shown.code == 0
    assert "0.11" in shown.out and "fireworks" in shown.out and "openai" not in shown.out
    assert "did you mean" in cli("prices", "show", "qwen3.5-9c").err


def test_prices_check_and_validate(cli: Cli, tmp_path: Path) -> None:
    stale = cli("prices", "check", "--older-than", "0", "--json")
    assert stale.code == 1
    dates = [r.get("checked", r["start"]) for r in stale.json]
    assert dates == sorted(dates) and len(dates) > 20
    assert cli("prices", "check", "--older-than", "100000").code == 0
    assert cli("prices", "validate").code == 0
    bad = tmp_path / "rates.yaml"
    line = "  - {method: sft, usd_per_mtok: %s, start: 2026-01-01, confidence: quoted, source: a page}\n"
    bad.write_text("provider: x\nrates:\n" + line % 1 + line % 2)
    found = cli("prices", "validate", str(bad))
    assert found.code == 1 and "two prices that start on 2026-01-01" in found.out
    bad.write_text("provider: x\nrates: [{}]\n")
    assert cli("prices", "validate", str(bad)).code == 1


def test_prices_accuracy_without_runs(cli: Cli) -> None:
    found = cli("prices", "accuracy")
    assert found.code == 0 and "no run has both" in found.err
    assert cli("prices", "accuracy", "--json").json == []


@pytest.mark.slow
def test_prices_accuracy_by_run(cli: Cli, tmp_path: Path) -> None:
    """A real run on this machine: what was quoted beside what was billed, for each component of the bill."""
    (tmp_path / "t.jsonl").write_text("".join((ORDERS / "train.jsonl").read_text().splitlines(True)[:20]))
    done = cli(
        "submit", "--provider", "local", "--model", str(TINY), "--train", "t.jsonl", "--epochs", "1",
        "--yes", "--watch",
    )  # fmt: skip
    assert done.code == 0, done.err
    [run] = cli("prices", "accuracy", "--runs", "--json").json
    assert run["origin"] == "measured hours times the rate" and run["provider"] == "local"
    [part] = run["components"]
    assert part["component"] == "electricity"
    assert float(part["error_usd"]) == pytest.approx(float(part["quoted_usd"]) - float(part["billed_usd"]))
    [total] = cli("prices", "accuracy", "--json").json
    assert (total["runs"], total["billed_usd"]) == (1, run["total"]["billed_usd"])
    shown = cli("prices", "accuracy", "--runs")
    assert run["run_id"] in shown.out and "electricity" in shown.out and "total" in shown.out


def test_models(cli: Cli) -> None:
    assert {m["name"] for m in cli("models", "gpt-oss", "--json").json} == {"gpt-oss-20b", "gpt-oss-120b"}
    everything = cli("models")
    assert everything.code == 0 and "qwen3-8b" in everything.out and "ended 2026-10-23" in everything.out
    on = cli("models", "--provider", "fireworks", "--json").json
    assert on and all("fireworks" in m["ids"] for m in on)
    shown = cli("models", "show", "gpt-4.1")
    assert "2027-01-14" in shown.out and "llama-3.3-70b" in shown.out
    assert cli("models", "show", "gtp").code == 2
    assert cli("models", "no-such-thing").code == 2
    assert "refresh" in cli("models", "--help").out


def test_models_refresh_without_a_key_says_so(cli: Cli) -> None:
    found = cli("models", "refresh", "--provider", "together")
    assert found.code == 4
    assert "together was not contacted" in found.err and "TOGETHER_API_KEY" in found.err


def test_quote(cli: Cli, project: Path) -> None:
    found = cli("quote", "--provider", "openai,together,fireworks", "--json", **ALWAYS_OPEN)
    assert found.code == 0
    quotes = {q["provider"]: q for q in found.json}
    assert quotes["together"]["expected_usd"] == "4.000000"
    tokens = quotes["openai"]["billed_tokens"]
    assert float(quotes["openai"]["expected_usd"]) == pytest.approx(tokens * 3 / 1e6)
    text = cli("quote", "--provider", "openai,together,fireworks", "--format", "md", **ALWAYS_OPEN).out
    assert text.startswith("| backend |") and "is the cheapest to train" in text


def test_quote_with_rates_of_the_user(cli: Cli, project: Path) -> None:
    (project / "home").mkdir()
    (project / "home" / "rates.yaml").write_text(
        "provider: together\nrates:\n"
        "  - {method: minimum, usd_per_job: 1, start: 2026-01-01, confidence: quoted, source: our contract}\n"
    )
    assert cli("quote", "--provider", "together", "--json").json[0]["expected_usd"] == "1.000000"
    flag = cli("quote", "--provider", "together", "--rate", "together:minimum=2.5", "--json")
    assert flag.json[0]["expected_usd"] == "2.500000"
    refused = cli(
        "submit", "--provider", "together", "--max-cost", "0.5", "--yes", TOGETHER_API_KEY="tgp_v1_not_a_key"
    )
    assert refused.code == 6 and "$1.00" in refused.err


def test_a_general_price_of_the_user_decides_what_is_quoted_and_what_a_limit_sees(
    cli: Cli, project: Path
) -> None:
    """The built-in prices are those of `sft_lora` by size, which are more specific."""
    ask = ("quote", "--provider", "fireworks", "--json")
    was = cli(*ask).json[0]["lines"][0]
    for flag in ("fireworks:sft=99", "fireworks:sft@qwen3.5-9b=99"):
        line = cli(*ask, "--rate", flag).json[0]["lines"][0]
        assert (line["usd_per_unit"], line["own"]) == ("99", f"--rate {flag}") != (was["usd_per_unit"], None)
    for flags in (("fireworks:sft=99", "fireworks:sft_lora=1"), ("fireworks:sft=1", "fireworks:sft=99")):
        found = cli(*ask, *(part for flag in flags for part in ("--rate", flag)))
        assert found.code == 2 and "does not affect this quote" in found.err
    (project / "home").mkdir(exist_ok=True)
    (project / "home" / "rates.yaml").write_text(
        "provider: fireworks\nrates:\n"
        "  - {method: sft, usd_per_mtok: 9900, start: 2026-01-01, confidence: quoted, source: our contract}\n"
    )
    key = {"FIREWORKS_API_KEY": "fw_not_a_key", "FIREWORKS_ACCOUNT_ID": "acme"}
    assert cli("submit", "--provider", "fireworks", "--max-cost", "0.5", "--yes", **key).code == 6


@pytest.mark.slow
def test_a_rate_that_prices_nothing_is_an_error_that_says_what_could_be_given(
    cli: Cli, project: Path
) -> None:
    ask = ("quote", "--provider", "together,local", "--set", f"model.local={TINY}")
    for flag in ("together:sft_lora@qwen3-8b=0.2", "fireworks:sft_lora=1", "local:owned@B200=3"):
        found = cli(*ask, "--rate", flag)
        assert found.code == 2 and f"--rate {flag} does not affect this quote" in found.err
        assert "together:sft_lora" in found.err and "local:owned@" in found.err
    priced = cli(*ask, "--rate", "together:sft_lora@qwen3.5-9b=50", "--rate", "local:owned=3600", "--json")
    quotes = {q["provider"]: q["lines"][0] for q in priced.json}
    assert quotes["together"]["own"] == "--rate together:sft_lora@qwen3.5-9b=50"
    assert quotes["local"]["component"] == "owned"


def test_a_quote_of_what_would_be_refused_says_so_and_stands_last(cli: Cli, project: Path) -> None:
    rows = (project / "train.jsonl").read_text().splitlines(keepends=True)
    (project / "train.jsonl").write_text("".join(rows[:5]))
    found = cli("quote", "--provider", "openai,fireworks", "--json", **ALWAYS_OPEN)
    assert [q["provider"] for q in found.json] == ["fireworks", "openai"]
    assert "10" in found.json[1]["refused"] and found.json[0]["refused"] is None
    full = cli("quote", "--provider", "fireworks", "--set", "adapter.type=full", "--json")
    assert "adapter.type" in full.json[0]["refused"]


@pytest.mark.parametrize("split", ["train", "validation", "leakage"])
def test_a_quote_of_rows_that_a_submit_refuses_says_so_and_is_not_the_cheapest(
    cli: Cli, project: Path, split: str
) -> None:
    """As `check` says it: broken rows, and those that training and validation share."""
    rows = (project / "train.jsonl").read_text().splitlines(keepends=True)
    other = rows[:6] if split == "leakage" else [json.dumps({"messages": []}) + "\n"] * 6
    (project / "other.jsonl").write_text("".join([*rows, *other] if split == "train" else other))
    name = "validation" if split == "leakage" else split
    asked = ("--provider", "together,fireworks", "--set", f"{name}=other.jsonl")
    quotes = cli("quote", *asked, "--json").json
    found = [p for p in cli("check", *asked, "--json").json["problems"] if p["severity"] == "error"]
    assert {q["provider"] for q in quotes if f"and {len(found) - 1} other errors" in q["refused"]} == {
        "together",
        "fireworks",
    }
    assert all("other.jsonl, row" in q["refused"] for q in quotes)
    assert "cheapest" not in cli("quote", *asked).out


PRICES = ("low_usd", "expected_usd", "high_usd")


def test_no_price_is_null_so_that_no_gate_takes_it_for_nothing(cli: Cli, project: Path) -> None:
    """An unknown model, a backend that nobody has prices of, and rows that a submit refuses."""
    unknown = cli("quote", "--provider", "together", "--model", "together=nobody/has-this", "--json")
    assert unknown.code == 1 and unknown.json[0]["unavailable"]
    traffic = ("--traffic", "20k req/day, 900 in, 150 out")
    months = cli("quote", "--provider", "together", "--model", "nobody/has-this", *traffic, "--json")
    rows = (project / "train.jsonl").read_text().splitlines(keepends=True)
    (project / "train.jsonl").write_text("".join([*rows, json.dumps({"messages": []}) + "\n"]))
    refused = cli("quote", "--provider", "together,fireworks", *traffic, "--json")
    assert refused.code == 1 and all(quote["refused"] for quote in refused.json["quotes"])
    quotes = [*unknown.json, *months.json["quotes"], *refused.json["quotes"]]
    assert [quote[name] for quote in quotes for name in PRICES] == [None] * 3 * len(quotes)
    totals = [*months.json["ownership"], *refused.json["ownership"]]
    sums = [total[name] for total in totals for name in ("monthly_usd", *PRICES)]
    assert sums == [None] * 4 * 3 and all(total["unavailable"] for total in totals)
    shown = cli("quote", "--provider", "together,fireworks", *traffic)
    assert "$" not in shown.out.split("would be rejected:")[0] and "refused" in shown.out


@pytest.mark.slow
def test_quote_over_months(cli: Cli, project: Path) -> None:
    asked = ("quote", "--provider", "openai,together,fireworks", "--traffic", "20k req/day, 900 in, 150 out")
    found = cli(
        *asked,
        "--months",
        "1",
        "--compare-with",
        "gpt-4.1",
        "--saved-tokens",
        "1500",
        "--json",
        **ALWAYS_OPEN,
    )
    assert found.code == 0
    totals = {t["provider"]: t for t in found.json["ownership"]}
    assert float(totals["openai"]["monthly_usd"]) == pytest.approx(273.75)
    assert float(totals["openai"]["base_monthly_usd"]) == pytest.approx(3650)  # $0.006 x 20,000 x 30.4167
    served = {way["server"] for way in totals["together"]["elsewhere"]}
    assert {"runpod", "vast", "lambda", "huggingface"} <= served and totals["openai"]["elsewhere"] == []
    shown = cli(*asked, "--months", "1", "--compare-with", "gpt-4.1", **ALWAYS_OPEN)
    assert "is the cheapest over 1 month" in " ".join(shown.out.split())
    assert "served at" in shown.out
    own = cli(*asked, "--rate", "runpod:gpu_rental@H100=0.01", "--json", **ALWAYS_OPEN)
    ways = {w["server"]: w for t in own.json["ownership"] for w in t["elsewhere"]}
    assert float(ways["runpod"]["monthly_usd"]) == pytest.approx(7.30)
    assert ways["runpod"]["monthly"][0]["own"] == "--rate runpod:gpu_rental@H100=0.01"
    default = cli(*asked, "--months", "6", "--utilisation", "0.5", "--json", **ALWAYS_OPEN).json
    assert default["ownership"][0]["base"]["model"] == "GPT-6 Luna"
    assert cli("quote", "--compare-with", "gpt-4.1").code == 2
    assert cli("quote", "--traffic", "a lot").code == 2


@pytest.mark.parametrize(
    "option", ["--months 6", "--hours-per-day 8", "--utilization 0.5", "--saved-tokens 100"]
)
@pytest.mark.parametrize("command", ["quote", "advise train.jsonl", "migrate --all --to local --plan p.yaml"])
def test_what_needs_traffic_is_not_ignored_without_it(
    cli: Cli, project: Path, command: str, option: str
) -> None:
    refused = cli(*command.split(), *option.split())
    assert refused.code == 2 and f"{option.split()[0]} needs --traffic" in refused.err


def test_advise(cli: Cli, project: Path) -> None:
    found = cli("advise", "train.jsonl", "--own-gpu", "--json")
    assert found.code == 0
    assert found.json["facts"]["json_share"] == 1.0
    assert found.json["choices"][0]["way"].startswith("tune on")
    shown = cli("advise", "train.jsonl", "--private", "--traffic", "200k req/day, 900 in, 150 out")
    assert "tune on your own hardware" in shown.out and "What would change this" in shown.out
    money = cli(
        "advise", "train.jsonl", "--traffic", "200k req/day, 900 in, 150 out", "--saved-tokens", "1500"
    )
    # gpt-4.1 ends within the six months; its host names this one
    assert "prompting costs" in money.out and "with GPT-6 Luna" in money.out


def test_advise_by_a_score_and_a_target(cli: Cli, project: Path) -> None:
    found = cli("advise", "train.jsonl", "--base-score", "0.86", "--target", "0.9", "--json")
    assert found.json["choices"][0]["way"] == "prompt"
    assert "96% of the target of 0.9" in found.json["choices"][0]["reasons"][0]
    assert cli("advise", "train.jsonl", "--base-score", "86").code == 2
    assert cli("advise", "train.jsonl", "--base-score", "0.8", "--target", "0").code == 2
    alone = cli("advise", "train.jsonl", "--target", "0.9")
    assert alone.code == 2 and "set --measure, --base-score or --eval" in alone.err
    assert cli("advise", "train.jsonl", "--base-score", "0.8", "--eval", "run").code == 2
    silent = cli("advise", "train.jsonl")
    assert (
        silent.code == 0 and "the 80% rule was not checked" in silent.err and "--measure MODEL" in silent.err
    )
    assumed = cli("advise", "train.jsonl", "--base-score", "0.85")
    assert "set yours with --target" in assumed.out and "the 80% rule was not checked" not in assumed.err


@pytest.mark.slow
def test_advise_measures_the_base_with_a_prompt_and_with_examples(cli: Cli, project: Path) -> None:
    """A model that answers right once it was shown examples."""
    shutil.copy(BUNDLED / "orders" / "test.jsonl", project)
    rows = [json.loads(line) for line in (project / "test.jsonl").read_text().splitlines()[:20]]
    answers = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in rows}

    def writes(number: int, body: dict[str, Any]) -> str:
        shown = len(body["messages"]) > 2
        return answers[body["messages"][-1]["content"]] if shown else "no idea"

    with chat_host() as host:
        host.writes = writes
        measure = ("--measure", f"{host.url}=gpt-4.1-mini", "--test", "test.jsonl", "--limit", "20")
        asked = ("advise", "train.jsonl", *measure, "--metric", "exact_match")
        unasked = cli(*asked)
        assert unasked.code == 2 and not host.bodies and "about $" in unasked.err  # the price first
        private = cli(*asked, "--private", "--yes")
        assert private.code == 2 and "must stay on your machines" in private.err and not host.bodies
        found = cli(*asked, "--target", "0.9", "--yes", "--json")
        assert found.code == 0 and len(host.bodies) == 40, found.err
        rule = found.json["rule"]
        assert rule["base"]["value"] == 0 and rule["few_shot"]["value"] == 1 and not rule["assumed"]
        assert "with examples" in str(found.json["choices"])
        again = cli(*asked, "--yes", "--json")
        assert len(host.bodies) == 40 and again.json["rule"]["target"] == 0.95  # nothing is paid twice
        longest = max((body["messages"] for body in host.bodies), key=len)
        shown = [message["content"] for message in longest]
        assert len(shown) == 11 and not set(shown[:-1]) & set(answers)  # no held-out row is shown
    assert cli("advise", "train.jsonl", "--measure", "local=tiny-chat").code == 2


def test_advise_weighs_hours_and_the_closed_model(cli: Cli, project: Path) -> None:
    asked = ("advise", "train.jsonl", "--traffic", "200k req/day, 900 in, 150 out", "--json")
    whole = {t["provider"]: t for t in cli(*asked, **ALWAYS_OPEN).json["totals"]}
    short = {t["provider"]: t for t in cli(*asked, "--hours-per-day", "8", **ALWAYS_OPEN).json["totals"]}
    assert float(short["together"]["monthly_usd"]) * 3 == pytest.approx(
        float(whole["together"]["monthly_usd"])
    )
    assert whole["openai"]["model"] == "gpt-4o-mini"
    assert whole["openai"]["serves_until"] == "2027-01-14"
    private = cli(*asked, "--private").json["totals"]
    assert {t["provider"] for t in private} == {"local"}
    assert all(t["elsewhere"] == [] for t in private)


def test_a_sweep_varies_around_what_a_plan_suggests(cli: Cli, tmp_path: Path) -> None:
    """Nobody agrees to it here: what it would try is counted before."""
    for name, first, n in (("t.jsonl", 0, 60), ("v.jsonl", 60, 20)):
        said = [
            [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": f"a {i}"}]
            for i in range(first, first + n)
        ]
        (tmp_path / name).write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
    spec = {"model": "qwen3-8b", "train": "t.jsonl", "validation": "v.jsonl", "learning_rate": 1e-5}
    (tmp_path / "finetune.yaml").write_text(json.dumps(spec))
    [proposed] = cli("plan", "-p", "together", "--suggest", "--json").json
    values = {one["name"]: one for one in proposed["settings"]}
    assert values["learning_rate"]["now"] == 1e-5 < values["learning_rate"]["value"]
    begun = cli("sweep", "-p", "together", "--suggest")
    assert begun.code != 0 and "9 trials" in begun.err  # three ranks, three rates
    assert cli("sweep", "-p", "together", "--suggest", "--grid", "epochs=1,2").code == 2
    assert cli("sweep", "--suggest").code == 2
    assert cli("plan", "--suggest", "--fix").code == 2


def test_how_a_tuned_model_is_served_is_said_before_paying(cli: Cli, project: Path) -> None:
    """Together does not serve what is tuned from a base whose id ends in -Reference."""
    named = {"openai": "gpt-4.1-mini", "together": "llama-3.3-70b", "fireworks": "llama-3.3-70b"}
    (project / "served.yaml").write_text(json.dumps({"model": named, "train": "train.jsonl"}))
    checked = cli("check", "served.yaml", "--json", **ALWAYS_OPEN).json
    assert checked["served"] == {
        "openai": "per token",
        "together": "only downloaded",
        "fireworks": "on dedicated GPUs, billed hourly",
    }
    [why] = [p for p in checked["problems"] if p["providers"] == ["together"] and p["code"] == "model"]
    assert why["severity"] == "warning" and "-Reference" in why["message"]
    quoted = cli(
        "quote", "served.yaml", "--traffic", "20k req/day, 900 in, 150 out", "--json", **ALWAYS_OPEN
    ).json
    assert {q["provider"]: q["served"] for q in quoted["quotes"] if q["served"]} == checked["served"]
    [ours] = [total for total in quoted["ownership"] if total["provider"] == "together"]
    assert ours["monthly_usd"] is None and ours["elsewhere"]
