"""Engines of others: their commands, and one that is really started."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import loopback, outside
from tests.paths import TINY
from tests.ports import own_port
from tests.unit.serving.conftest import Known, in_32_bits, in_process, random_adapter
from tests.unit.serving.gguf import QUESTION

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.errors import RunFailed, SetupError
from orchestrate.runs import serving
from orchestrate.serving import engines
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.tuned import TunedModel
from orchestrate.settings import config

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
SERVER = """#!{python}
import http.server, sys
assert sys.argv[1] == "-m" and "--jinja" in sys.argv, sys.argv
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(" ".join(sys.argv[1:]).encode())
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def tuned(known: Known) -> TunedModel:
    return TunedModel("one", known.adapter, str(TINY), "adapter")


def test_the_command_for_vllm_has_every_adapter_under_its_name(known: Known, tmp_path: Path) -> None:
    folders = {"one": tmp_path / "a", "other": tmp_path / "b"}
    both = [tuned(known), TunedModel("other", known.other, str(TINY), "adapter")]
    command = engines.vllm(
        both, folders, "the/base", host="127.0.0.1", port=9, python=Path("/env/bin/python")
    )
    words = list(command.words)
    assert words[:4] == ["/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert words[words.index("--lora-modules") + 1 :] == [f"one={tmp_path}/a", f"other={tmp_path}/b"]
    assert words[words.index("--max-lora-rank") + 1] == "8" and words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--chat-template") + 1] == f"{tmp_path}/a/chat_template.jinja"
    assert command.line.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ")


def test_names_and_folders_that_would_be_read_otherwise_are_given_as_objects(tmp_path: Path) -> None:
    """vLLM cuts NAME=PATH at every =."""
    folders = {"a=b": tmp_path / "x", "{}": tmp_path / "y", "plain": tmp_path / "k=v"}
    tuned = [TunedModel(name, tmp_path, str(TINY), "adapter") for name in folders]
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    words = engines.vllm(tuned, folders, "b", host="127.0.0.1", port=9, python=None).words
    given = [json.loads(word) for word in words[words.index("--lora-modules") + 1 :]]
    assert given == [{"name": name, "path": str(folder)} for name, folder in folders.items()]


def test_an_engine_that_is_not_here_is_told_as_a_command(known: Known, tmp_path: Path) -> None:
    folders = {"one": tmp_path}
    missing = engines.vllm([tuned(known)], folders, "b", host="127.0.0.1", port=9, python=tmp_path / "python")
    with pytest.raises(SetupError, match="--enable-lora") as raised, engines.started(missing):
        pass
    assert "orchestrate verify RUN --at URL" in (raised.value.fix or "")


def test_an_engine_takes_no_module_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "argparse.py").write_text("raise SystemExit('a module of the working folder ran')")
    monkeypatch.chdir(tmp_path)
    port = own_port()
    words = (sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1")
    with engines.started(engines.EngineCommand(words, f"http://127.0.0.1:{port}", alive="/")) as url:
        assert "argparse.py" in loopback.get(url).text


def test_an_engine_is_started_waited_for_and_ended(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    command = engines.llama_server(
        tuned(known), tmp_path / "m.gguf", host="127.0.0.1", port=own_port(), parallel=4
    )
    with engines.started(command.with_more(["--ctx-size", "512"])) as url:
        said = loopback.get(f"{url}/health").text
        assert "--alias one" in said and said.endswith("--parallel 4 --ctx-size 512")
    with pytest.raises(httpx.ConnectError):
        loopback.get(f"{url}/health")
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no such model')\n")
    with pytest.raises(RunFailed, match="no such model"), engines.started(command):
        pass


@pytest.mark.parametrize(
    ("here", "count", "more", "engine", "said"),
    [
        ("torch", 1, {}, "transformers", "there is no GPU"),
        ("torch vllm llama_cpp", 1, {}, "transformers", "there is no GPU"),
        ("torch gpu", 2, {}, "transformers", "vLLM is not installed"),
        ("torch gpu vllm", 2, {}, "vllm", "a GPU and vLLM are available"),
        ("torch gpu vllm", 1, {"use_dora": True}, "transformers", "vLLM does not support one"),
        ("torch gpu vllm", 0, {}, "transformers", "there is no adapter to serve"),
        ("llama_cpp", 1, {}, "llama.cpp", "torch is not installed"),
        ("llama_cpp", 2, {}, "transformers", "there is no GPU"),
    ],
)
def test_the_engine_that_nobody_named_is_chosen_by_what_is_here(
    here: str, count: int, more: dict[str, Any], engine: str, said: str, known: Known, tmp_path: Path
) -> None:
    config = json.loads((known.adapter / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **more}))
    words = here.split()
    there = engines.LocalCapabilities(**{n: n in words for n in ("torch", "gpu", "vllm", "llama_cpp")})
    both = [TunedModel(name, tmp_path, str(TINY), "adapter") for name in ("one", "other")]
    chosen, why = engines.choose(both[:count], there)
    assert chosen == engine and said in why


def test_a_python_package_gives_the_server_where_there_is_no_tool(known: Known, tmp_path: Path) -> None:
    """Its script takes the flags of `llama-server` that we give it, in an environment without us."""
    given: dict[str, Any] = {"host": "127.0.0.1", "port": 9, "parallel": 4}
    command = engines.llama_server(tuned(known), tmp_path / "m.gguf", python=Path(sys.executable), **given)
    assert command.words[:2] == (sys.executable, str(engines.SCRIPT)) and command.alive == "/v1/models"
    bare = [sys.executable, "-I", "-S", *command.words[1:]]
    told = subprocess.run([*bare, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(word in told for word in command.words if word.startswith("-"))
    refused = subprocess.run([*bare, "--mlock"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "unrecognized arguments: --mlock" in refused.stderr


@pytest.mark.slow
@pytest.mark.outside
def test_a_real_vllm_serves_what_was_trained_and_a_swapped_name_is_caught(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `serve --engine vllm` and `serve --into` do it, in 32 bits on the CPU: fifty prompts are the
    trainer's ids, and so are their answers."""
    python = Path(outside.program("vllm"))
    for name, value in (("KVCACHE_SPACE", "1"), ("OMP_THREADS_BIND", "nobind")):
        monkeypatch.setenv(f"VLLM_CPU_{name}", value)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = ("--enforce-eager", "--max-model-len", "512", "--dtype", "float32", "--max-loras", "2")
    choice = serving.EngineOptions(engine="vllm", python=python, more=flags)
    base = in_32_bits(tmp_path / "base")
    first, second = (random_adapter(tmp_path / n, seed, base) for n, seed in (("a=b", 1), ("other", 2)))
    with (
        Orchestrator(config.load(home=tmp_path / "home", env={}, cwd=tmp_path)) as ft,
        serving.serve(ft, [str(first)], serving.ServerSettings(port=0), choice) as up,
    ):
        assert [proof.state for proof in serving.prove(ft, up, [str(first)])] == ["proved"]
        [(added, _, seconds)] = serving.add(ft, [str(second)], up.url, [])
        assert added == "other" and seconds < 60
        for model, state in (("a=b", "proved"), ("other", "failed"), (up.models[-1], "failed")):
            place = UrlPlace(up.url, model=model)
            proof = verify(known.fingerprint, place, run_id="r")
            place.close()
            assert (proof.engine, proof.state) == ("vLLM", state), proof
        with pytest.raises(SetupError, match="already been loaded"):
            serving.add(ft, [str(second)], up.url, [])
        rows = [
            {"messages": [{"role": "user", "content": QUESTION.format(n=n, m=7 * n)}], "max_tokens": 12}
            for n in range(50)
        ]
        for name, folder in (("a=b", first), ("other", second)):
            weights = str(known.exported(tmp_path / f"{name} exported", folder))
            [wanted] = in_process([{"task": "read", "folder": weights, "base": str(base), "rows": rows}])
            assert len({tuple(a["answer"]) for a in wanted["answers"]}) > 10
            with httpx.Client(base_url=up.url, timeout=120) as client:
                for row, ours in zip(rows, wanted["answers"], strict=True):
                    body = {**row, "model": name, "temperature": 0, "return_token_ids": True}
                    told = client.post("/v1/chat/completions", json=body).json()
                    assert len(ours["ids"]) > 30 and told["prompt_token_ids"] == ours["ids"]
                    assert told["choices"][0]["token_ids"] == ours["answer"]
