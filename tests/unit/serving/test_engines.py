"""Engines of others: their commands, and one that is really started."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests import outside
from tests.paths import TINY
from tests.unit.serving.conftest import Known, in_process

from orchestrate.errors import RunFailed, SetupError
from orchestrate.serving import engines
from orchestrate.serving.export.forms import Options, export
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.serving.tuned import Tuned

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


def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def tuned(known: Known) -> Tuned:
    return Tuned("one", known.adapter, str(TINY), "adapter")


def test_the_command_for_vllm_has_every_adapter_under_its_name(known: Known, tmp_path: Path) -> None:
    folders = {"one": tmp_path / "a", "other": tmp_path / "b"}
    both = [tuned(known), Tuned("other", known.other, str(TINY), "adapter")]
    command = engines.vllm(
        both, folders, "the/base", host="127.0.0.1", port=9, python=Path("/env/bin/python")
    )
    words = list(command.words)
    assert words[:4] == ["/env/bin/python", "-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert words[words.index("--lora-modules") + 1 :] == [f"one={tmp_path}/a", f"other={tmp_path}/b"]
    assert words[words.index("--max-lora-rank") + 1] == "8" and words[words.index("--max-loras") + 1] == "2"
    assert words[words.index("--chat-template") + 1] == f"{tmp_path}/a/chat_template.jinja"
    assert command.line.startswith("VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 ")


def test_an_engine_that_is_not_here_is_told_as_a_command(known: Known, tmp_path: Path) -> None:
    folders = {"one": tmp_path}
    missing = engines.vllm([tuned(known)], folders, "b", host="127.0.0.1", port=9, python=tmp_path / "python")
    with pytest.raises(SetupError, match="--enable-lora") as raised, engines.started(missing):
        pass
    assert "orchestrate verify RUN --at URL" in (raised.value.fix or "")


def test_an_engine_is_started_waited_for_and_ended(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(SERVER.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    command = engines.llama_server(
        tuned(known), tmp_path / "m.gguf", host="127.0.0.1", port=port(), parallel=4
    )
    with engines.started(command.with_more(["--ctx-size", "512"])) as url:
        said = httpx.get(f"{url}/health").text
        assert "--alias one" in said and said.endswith("--parallel 4 --ctx-size 512")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    program.write_text(f"#!{sys.executable}\nraise SystemExit('no such model')\n")
    with pytest.raises(RunFailed, match="no such model"), engines.started(command):
        pass


@pytest.mark.parametrize(
    ("here", "count", "more", "engine", "said"),
    [
        ("torch", 1, {}, "transformers", "no GPU is here"),
        ("torch vllm llama_cpp", 1, {}, "transformers", "no GPU is here"),
        ("torch gpu", 2, {}, "transformers", "no vLLM is here"),
        ("torch gpu vllm", 2, {}, "vllm", "a GPU is here, and vLLM"),
        ("torch gpu vllm", 1, {"use_dora": True}, "transformers", "vLLM cannot hold one"),
        ("torch gpu vllm", 0, {}, "transformers", "a base alone"),
        ("llama_cpp", 1, {}, "llama.cpp", "torch is not installed"),
        ("llama_cpp", 2, {}, "transformers", "no GPU is here"),
    ],
)
def test_the_engine_that_nobody_named_is_chosen_by_what_is_here(
    here: str, count: int, more: dict[str, Any], engine: str, said: str, known: Known, tmp_path: Path
) -> None:
    config = json.loads((known.adapter / "adapter_config.json").read_bytes())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, **more}))
    words = here.split()
    there = engines.Here(**{n: n in words for n in ("torch", "gpu", "vllm", "llama_cpp")})
    both = [Tuned(name, tmp_path, str(TINY), "adapter") for name in ("one", "other")]
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
    known: Known, tmp_path: Path
) -> None:
    python = outside.program("vllm")
    both = [tuned(known), Tuned("other", known.other, str(TINY), "adapter")]
    folders = {
        one.name: Path(export(one, "vllm", tmp_path / one.name, Options(), work=in_process).folder)
        for one in both
    }
    command = engines.vllm(
        both[:1], {"one": folders["one"]}, "base", host="127.0.0.1", port=port(), python=Path(python)
    )
    given = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    small = engines.Command(command.words, command.url, {**command.environment, **given})
    flags = ["--enforce-eager", "--max-model-len", "512", "--dtype", "float32", "--max-loras", "2"]
    with engines.started(small.with_more(flags)) as url:
        engines.load_into(url, "other", folders["other"])
        for model, state in (("one", "proved"), ("other", "failed"), ("base", "failed")):
            place = UrlPlace(url, model=model)
            proof = verify(known.sheet, place, run_id="r")
            place.close()
            assert (proof.engine, proof.state) == ("vLLM", state), proof
        with pytest.raises(SetupError, match="already been loaded"):
            engines.load_into(url, "other", folders["other"])
