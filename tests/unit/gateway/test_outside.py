"""Programs that people use, their own code unchanged, through a whole life: only the base URL is another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests import outside
from tests.unit.gateway.conftest import MODELS, Gateway, gateway_of, rows, until

from orchestrate.sandbox.server import Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.outside]
CLIENTS = Path(__file__).parent / "clients"
HOSTED = [name for name, target in MODELS.items() if target["backend"] != "local"]


@pytest.fixture(params=list(MODELS), ids=[target["backend"] for target in MODELS.values()])
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def data(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_bytes(rows(16, mark=request.node.name))
    return path


def env(gateway: Gateway, home: Path, **more: str) -> dict[str, str]:
    """As in the shell of somebody who has set the base URL, and nothing else."""
    own = {"OPENAI_BASE_URL": gateway.url, "OPENAI_API_KEY": "no-key-here", "HOME": str(home)}
    return {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **own, **more}


def told(command: list[str], folder: Path, env: dict[str, str]) -> dict[str, Any]:
    """What a program says in its last line."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def life(gateway: Gateway, name: str, *words: str, data: Path, **more: str) -> dict[str, Any]:
    script = CLIENTS / f"{name.replace('-', '_')}_life.py"
    model, *further = words
    command = [outside.program(name), str(script), model, str(data), *further]
    return told(command, data.parent, env(gateway, data.parent, **more))


def chat_refusal(model: str) -> str | None:
    """Hosts serve a tuned model where it is deployed; this machine answers."""
    return "model_not_deployed" if model in HOSTED else None


def test_litellm(gateway: Gateway, model: str, data: Path) -> None:
    found = life(gateway, "litellm", model, data=data, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert found["model"].startswith(f"ft:{model}:orchestrate:lite:")
    assert (found["status"], found["cancelled"], found["provider"]) == ("succeeded", "cancelled", "openai")
    assert found["listed"] and found["content"] and found["deleted"]


def test_dspy(gateway: Gateway, model: str, data: Path) -> None:
    found = life(gateway, "dspy", model, data=data, LITELLM_LOCAL_MODEL_COST_MAP="True")
    assert found["model"].removeprefix("openai/").startswith(f"ft:{model}:orchestrate:")
    assert "succeeded" in found["status"]
    assert (found["refused"] is None) == (model not in HOSTED), found["refused"]


@pytest.mark.parametrize("client", ["dspy", "langchain", "llamaindex", "pydantic-ai", "node"])
@pytest.mark.parametrize("hosted", HOSTED, ids=[MODELS[name]["backend"] for name in HOSTED])
def test_a_client_asks_what_it_tuned_on_a_host(
    sandbox: Sandbox, data: Path, hosted: str, client: str
) -> None:
    """Nobody does anything between its job and its question: the model map allows the deployment."""
    limits = {"max_hours": 2, "max_cost_usd": 40}
    models = {hosted: {**MODELS[hosted], "deploy": limits}}
    with gateway_of(data.parent / "home", sandbox.env, {"models": models}) as gateway:
        if client == "node":
            found = node_life(gateway, hosted, data)
        else:
            # A sandbox that does not train answers with a sentence of its own, whatever form is asked for.
            plain = ["plain"] if client in ("langchain", "pydantic-ai") else []
            cached = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
            found = life(gateway, client, hosted, *plain, data=data, **cached)
        assert "succeeded" in found["status"] and found["refused"] is None, found
        assert all(found.get("said", [])), found
        [made] = [one.record for one in gateway.ft.deployments(over=None)]
        assert (made.gateway_model, made.provider) == (hosted, MODELS[hosted]["backend"])


def test_llamaindex(gateway: Gateway, model: str, data: Path) -> None:
    found = life(gateway, "llamaindex", model, data=data)
    assert found["status"] == "succeeded" and found["model"].startswith(f"ft:{model}:")
    assert found["window"] > 100_000, "it looks the asked model's window up"
    assert (found["refused"], found["gave_up"]) == (chat_refusal(model), True)


def test_langchain(gateway: Gateway, model: str, data: Path) -> None:
    found = life(gateway, "langchain", model, data=data)
    assert found["status"] == "succeeded" and found["model"].startswith(f"ft:{model}:")
    assert found["refused"] == chat_refusal(model)
    assert model in HOSTED or (found["text"], found["streamed"], found["said"]) == (True, True, [True] * 3)


def test_pydantic_ai(gateway: Gateway, model: str, data: Path) -> None:
    found = life(gateway, "pydantic-ai", model, data=data)
    assert found["status"] == "succeeded" and found["model"].startswith(f"ft:{model}:")
    assert found["refused"] == chat_refusal(model)
    assert model in HOSTED or found["said"] == [True] * 6


def test_wandb(gateway: Gateway, model: str, data: Path) -> None:
    offline = {
        "WANDB_MODE": "offline",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "WANDB_SILENT": "true",
    }
    found = life(gateway, "wandb", model, data=data, WANDB_DIR=str(data.parent), **offline)
    assert "completed successfully" in found["told"] and found["run"]
    assert found["model"].startswith(f"ft:{model}:") and (found["filename"], found["rows"]) == ("t.jsonl", 16)


def test_instructor(gateway: Gateway, model: str, data: Path) -> None:
    """Its command watches its jobs until it is interrupted."""
    words = ["jobs", "create-from-file", str(data), "--model", model, "--n-epochs", "2", "--poll", "1"]
    command = [outside.program("instructor", "instructor"), *words]
    out = (data.parent / "out").open("wb")
    own = env(gateway, data.parent, COLUMNS="200")
    watching = subprocess.Popen(command, cwd=data.parent, env=own, stdout=out, stderr=out)
    try:
        with gateway.client() as client:

            def succeeded() -> bool:
                found = client.fine_tuning.jobs.list(limit=1).data
                return bool(found) and (found[0].model, found[0].status) == (model, "succeeded")

            def going_on() -> bool:
                assert watching.poll() is None, (data.parent / "out").read_text()[-2000:]
                return succeeded()

            until(going_on)
        time.sleep(3)  # it looks each second, and shows its table when it is interrupted
        watching.send_signal(signal.SIGINT)
        watching.wait(240)
        assert "succeeded" in (data.parent / "out").read_text()
    finally:
        watching.kill()
        watching.wait()
        out.close()


def node_life(gateway: Gateway, model: str, data: Path) -> dict[str, Any]:
    shutil.copy(CLIENTS / "life.mjs", data.parent)
    (data.parent / "node_modules").symlink_to(outside.node_modules("openai-node"))
    node = shutil.which("node") or pytest.skip("node is not installed (Debian: apt-get install nodejs npm)")
    return told([str(node), "life.mjs", model], data.parent, env(gateway, data.parent))


def test_node(gateway: Gateway, model: str, data: Path) -> None:
    found = node_life(gateway, model, data)
    assert found["status"] == "succeeded" and found["model"].startswith(f"ft:{model}:orchestrate:node:")
    assert found["newest"] == "The job has successfully completed"
    assert found["checkpoints"] and found["result"] and found["listed"] and found["deleted"]
    assert found["refused"] == chat_refusal(model)
