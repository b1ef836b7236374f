"""A server of training sessions: the official client's life, and requests as nobody should send them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.paths import ROOT, TINY
from tests.unit.sessions.homes import workspace
from tests.waiting import until

from orchestrate import sessions
from orchestrate.local.session_server.service import KEPT_SNAPSHOTS

pytestmark = pytest.mark.slow
NAME = "Qwen/Qwen3-8B"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def url(home: Path, quick_python: None) -> Iterator[str]:
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1, precision="fp32")
    with workspace(home) as ft, sessions.serve(ft, str(TINY), terms) as up:
        yield up.url


def program(url: str, *command: str | Path, **env: str) -> str:
    own = {"TINKER_BASE_URL": url, "TINKER_API_KEY": "tml-key-of-the-test", "TINKER_TELEMETRY": "0", **env}
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        env={**clean, **own},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_life_of_a_session_with_the_official_client(url: str) -> None:
    lines = program(url, ROOT / "tests" / "unit" / "sessions" / "life.py", url, NAME).splitlines()
    told = {one["what"]: one["value"] for one in map(json.loads, lines)}
    assert told["losses"] == sorted(told["losses"], reverse=True)
    assert told["lengths"] == [[6, 6], [6, 6]]
    assert told["prompt"] == pytest.approx(told["trained"], abs=1e-4), "sampling reads what training reads"
    assert told["loaded"][0] == pytest.approx(told["loaded"][1], rel=1e-6)
    assert told["kept"][0] == told["kept"][1]
    assert all(told[name] is not None for name in ("stable_reinforce", "twice", "token")), "refused"
    assert told["custom"] == 1.0 and told["norm"] > 0


def test_the_documented_program_runs(url: str, tmp_path: Path) -> None:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sessions.md").read_text(), re.DOTALL)[-1]
    (tmp_path / "loop.py").write_text(block)
    said = program(url, tmp_path / "loop.py", MODEL=NAME)
    losses = [float(line.split()[-1]) for line in said.splitlines() if line.startswith("step")]
    assert len(losses) == 8 and losses[-1] < losses[0] / 2
    assert "tinker://" in said


class Raw:
    """Requests as they are on the wire."""

    def __init__(self, url: str, key: str = "tml-key-of-the-test") -> None:
        self.http = httpx.Client(
            base_url=f"{url}/api/v1", headers={"x-api-key": key}, timeout=120, trust_env=False
        )

    def post(self, route: str, /, **body: Any) -> httpx.Response:
        return self.http.post(route, json=body)

    def result(self, answer: httpx.Response) -> httpx.Response:
        assert answer.status_code == 200, answer.text

        def look() -> httpx.Response | None:
            found = self.post("retrieve_future", request_id=answer.json()["request_id"])
            return None if found.status_code == 408 else found

        return until(look)

    def model(self, **lora: Any) -> str:
        session = self.post("create_session", tags=[]).json()["session_id"]
        made = self.post(
            "create_model",
            session_id=session,
            model_seq_id=0,
            base_model=NAME,
            lora_config={"rank": 4, **lora},
        )
        assert "error" not in self.result(made).json()
        return made.json()["model_id"]

    def forward(
        self, model: str, number: int, change: Callable[[Any], None] = lambda asked: None
    ) -> httpx.Response:
        from tinker.proto import tinker_public_pb2 as proto

        asked: Any = proto.ForwardBackwardRequest(model_id=model, seq_id=number, loss_fn="cross_entropy")
        datum = asked.data.add()
        datum.model_input.add().encoded_text.tokens = np.array([5, 6, 7], dtype="<i4").tobytes()
        tensor = datum.loss_fn_inputs["target_tokens"]
        tensor.dense, tensor.dtype = np.array([6, 7, 8], dtype="<i8").tobytes(), 2
        tensor.shape.extend([3])
        change(asked)
        return self.http.post(
            "forward_backward",
            content=asked.SerializeToString(),
            headers={"content-type": "application/x-protobuf"},
        )

    def norm(self, model: str, number: int) -> Any:
        told = self.result(
            self.post("optim_step", model_id=model, seq_id=number, adam_params={"learning_rate": 0.0})
        )
        return told.json().get("metrics", {}).get("grad_norm:mean")


@pytest.fixture
def raw(url: str) -> Iterator[Raw]:
    made = Raw(url)
    with made.http:
        yield made


def test_a_request_that_comes_again_is_carried_out_once(raw: Raw) -> None:
    model = raw.model(seed=3)
    first, second = raw.forward(model, 1), raw.forward(model, 1)
    assert first.json() == second.json()
    once = raw.norm(model, 2)
    raw.forward(model, 3)
    raw.forward(model, 4)
    assert raw.norm(model, 5) == pytest.approx(2 * once, rel=1e-4), "two requests are two"


def test_requests_are_carried_out_in_the_order_of_their_numbers(raw: Raw) -> None:
    model = raw.model(seed=3)
    step = raw.post("optim_step", model_id=model, seq_id=2, adam_params={})
    raw.forward(model, 1)
    assert "metrics" in raw.result(step).json(), "the step waited for its gradient"


def test_a_refused_request_does_not_hold_up_the_next(raw: Raw) -> None:
    model = raw.model()
    bad = raw.post("optim_step", model_id=model, seq_id=1, adam_params={"learning_rate": "fast"})
    assert raw.result(bad).json()["category"] == "user"
    assert b"loss:sum" in raw.result(raw.forward(model, 2)).content


def test_a_caller_that_breaks_off_finds_its_weights_and_one_that_ends_well_leaves_none(raw: Raw) -> None:
    def left(reason: str) -> list[str]:
        model = raw.model()
        raw.result(raw.forward(model, 1))
        id = model.partition(":")[0]
        assert raw.post(f"sessions/{id}/finish", reason={"type": reason}).status_code == 200
        until(lambda: raw.post("get_info", model_id=model).status_code == 404)
        listed = raw.http.get("checkpoints").json()["checkpoints"]
        return [one["checkpoint_id"] for one in listed if one["training_run_id"] == model]

    assert left("errored") == ["weights/left-behind"]
    assert left("success") == []


def test_samplers_without_a_name_take_no_endless_room(raw: Raw, home: Path) -> None:
    model = raw.model()
    id = model.partition(":")[0]
    samplers = [
        raw.result(
            raw.post("save_weights_for_sampler", model_id=model, seq_id=n + 1, sampling_session_seq_id=n)
        ).json()
        for n in range(KEPT_SNAPSHOTS + 2)
    ]
    assert len([*(home / "sessions" / "snapshots").glob(f"*/{id}/*")]) == KEPT_SNAPSHOTS

    def sampled(sampler: dict[str, Any]) -> bytes:
        asked = {"prompt": {"chunks": [{"tokens": [5, 6]}]}, "sampling_params": {"max_tokens": 2}}
        return raw.result(
            raw.post("asample", sampling_session_id=sampler["sampling_session_id"], seq_id=0, **asked)
        ).content

    assert b"were deleted" in sampled(samplers[0])
    assert b"error" not in sampled(samplers[-1])


def test_hostile_requests_are_refused_and_change_nothing(raw: Raw, home: Path) -> None:
    model, number = raw.model(), 0

    def fails(change: Callable[[Any], None]) -> None:
        nonlocal number
        number += 1
        told = raw.result(raw.forward(model, number, change)).json()
        assert told["category"] == "user" and len(told["error"]) < 1000, told

    def tensor(**fields: Any) -> Callable[[Any], None]:
        def change(asked: Any) -> None:
            found = asked.data[0].loss_fn_inputs["weights"]
            for name, value in fields.items():
                found.shape.extend(value) if name == "shape" else setattr(found, name, value)

        return change

    fails(lambda asked: asked.data.pop())
    fails(tensor(dense=np.array([np.nan] * 3, dtype="<f4").tobytes(), dtype=1, shape=[3]))
    fails(tensor(dense=b"abc", dtype=1, shape=[3]))
    fails(tensor(dense=b"", dtype=1, shape=[1 << 40, 1 << 40]))
    fails(tensor(dense=b"", dtype=1, shape=[-1]))
    fails(tensor(dense=b"", dtype=9, shape=[3]))

    def sparse(asked: Any) -> None:
        found = asked.data[0].loss_fn_inputs["weights"]
        found.dtype, found.sparse_csr.values = 1, np.array([1.0], dtype="<f4").tobytes()
        found.sparse_csr.crow_indices = np.array([0, 1, 1, 1], dtype="<i8").tobytes()
        found.sparse_csr.col_indices = np.array([1 << 40], dtype="<i8").tobytes()
        found.shape.extend([3, 2])

    fails(sparse)

    def bomb(asked: Any) -> None:
        found = asked.data[0].loss_fn_inputs["weights"]
        found.dtype, found.sparse_csr.values = 1, b""
        found.sparse_csr.crow_indices = np.zeros(4, dtype="<i8").tobytes()
        found.shape.extend([3, 1 << 26])

    fails(bomb)
    fails(lambda asked: asked.loss_fn_config_v2["clip_lo"].__setattr__("number", 7.0))
    far = {"logprobs": [-500.0] * 3, "advantages": [1.0] * 3}

    def infinite(asked: Any) -> None:
        asked.loss_fn = "importance_sampling"
        for name, numbers in far.items():
            found = asked.data[0].loss_fn_inputs[name]
            found.dense, found.dtype = np.array(numbers, dtype="<f4").tobytes(), 1
            found.shape.extend([3])

    fails(infinite)
    assert raw.forward(model, 0).status_code == 400
    number += 1
    endless = raw.post("save_weights", model_id=model, seq_id=number, path="x", ttl_seconds=10**15)
    assert raw.result(endless).json()["category"] == "user"
    assert raw.http.get("checkpoints").status_code == 200
    for name in ("../../evil", "", ".", "a/b", "x" * 200, "é"):
        number += 1
        told = raw.result(raw.post("save_weights", model_id=model, seq_id=number, path=name)).json()
        assert told["category"] == "user"
    assert not [path for path in home.rglob("*evil*")]
    for path in (
        "tinker://../../weights/x",
        "tinker://a/weights/..",
        "/etc/passwd",
        "tinker://%2e%2e/weights/x",
    ):
        assert raw.post("weights_info", tinker_path=path).status_code == 404
    for body in (b"\xff" * 50, b"{", b""):
        answer = raw.http.post("forward_backward", content=body)
        assert answer.status_code in (400, 404) and answer.json()["detail"]
    assert raw.post("create_model", session_id="x", model_seq_id=0, base_model=NAME).status_code == 404
    assert b"loss:sum" in raw.result(raw.forward(model, number + 1)).content, "it goes on"


def sample(raw: Raw, sampler: str, number: int, ids: list[int], **more: Any) -> httpx.Response:
    asked = {"prompt": {"chunks": [{"tokens": ids}]}, "sampling_params": {"max_tokens": 3, "temperature": 0}}
    return raw.post("asample", sampling_session_id=sampler, seq_id=number, **{**asked, **more})


def test_samplers_of_a_name_that_was_saved_again_have_the_new_weights(raw: Raw) -> None:
    model, number = raw.model(seed=2), 0
    id = model.partition(":")[0]

    def drawn(of: int) -> bytes:
        nonlocal number
        number += 1
        save = {"path": "one", "overwrite": True}
        path = raw.result(raw.post("save_weights_for_sampler", model_id=model, seq_id=number, **save)).json()[
            "path"
        ]
        made = raw.post("create_sampling_session", session_id=id, sampling_session_seq_id=of, model_path=path)
        return raw.result(sample(raw, made.json()["sampling_session_id"], 0, [5, 6])).content

    first = drawn(0)
    for _ in range(6):
        raw.forward(model, number + 1)
        raw.result(
            raw.post("optim_step", model_id=model, seq_id=number + 2, adam_params={"learning_rate": 0.05})
        )
        number += 2
    assert drawn(1) != first


def test_questions_as_nobody_should_ask_them(raw: Raw) -> None:
    session = raw.post("create_session").json()["session_id"]
    made = raw.post("create_sampling_session", session_id=session, sampling_session_seq_id=0, base_model=NAME)
    sampler = made.json()["sampling_session_id"]
    one = raw.result(sample(raw, sampler, 0, [5], prompt_logprobs=True, topk_prompt_logprobs=2))
    assert one.headers["content-type"] == "application/x-protobuf"
    for number, stop in enumerate((["x" * 501], ["x"] * 65, [1] * 65)):
        asked = {"max_tokens": 3, "stop": stop}
        assert sample(raw, sampler, 10 + number, [5], sampling_params=asked).status_code == 400
    body = json.dumps({"sampling_session_id": sampler, "seq_id": 20, "prompt": {"chunks": [{"tokens": [5]}]}})
    half = body[:-1] + ', "sampling_params": {"max_tokens": 3, "stop": "\\ud800"}}'
    answer = raw.http.post("asample", content=half)
    assert answer.status_code == 400 or "error" in raw.result(answer).json()
    again = raw.http.post("asample", content=half)
    assert again.status_code == 400 or "error" in raw.result(again).json(), "it is not waited for"


def test_weights_that_cannot_be_saved_are_not_given_up(raw: Raw, home: Path) -> None:
    model = raw.model()
    id = model.partition(":")[0]
    raw.result(raw.forward(model, 1))
    place = home / "sessions" / "weights" / "-" / model.replace(":", "@")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("in the way")
    told = raw.result(raw.post("save_weights", model_id=model, seq_id=2, path="one")).json()
    assert told["category"] == "server"
    assert raw.post(f"sessions/{id}/finish", reason={"type": "errored"}).status_code == 500
    assert raw.post("get_info", model_id=model).status_code == 200, "it is still there"
    place.unlink()
    assert raw.post(f"sessions/{id}/finish", reason={"type": "errored"}).status_code == 200
    until(lambda: (place / "weights" / "left-behind" / "saved.json").is_file())


def test_what_one_key_trains_no_other_sees(tmp_path: Path, quick_python: None) -> None:
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1)
    with workspace(tmp_path) as ft:
        ada, bob = sessions.new_key(ft, "ada"), sessions.new_key(ft, "bob")
        assert ada.startswith("tml-")
        with sessions.serve(ft, str(TINY), terms) as up:
            assert up.keyed
            one, two, none = Raw(up.url, ada), Raw(up.url, bob), Raw(up.url, "tml-of-somebody-else")
            assert none.post("create_session").status_code == 401
            model = one.model()
            saved = one.result(one.post("save_weights", model_id=model, seq_id=1, path="mine")).json()["path"]
            assert one.post("weights_info", tinker_path=saved).status_code == 200
            assert two.post("weights_info", tinker_path=saved).status_code == 404
            assert two.post("get_info", model_id=model).status_code == 404
            assert two.forward(model, 2).status_code == 404
            result = one.forward(model, 2).json()["request_id"]
            assert two.post("retrieve_future", request_id=result).status_code == 410
            assert [len(c.http.get("checkpoints").json()["checkpoints"]) for c in (one, two)] == [1, 0]
            for client in (one, two, none):
                client.http.close()


def test_a_process_that_is_killed_is_told_of_and_started_again(tmp_path: Path, quick_python: None) -> None:
    terms = sessions.SessionTerms(port=0, called=(NAME,), threads=1, precision="fp32")
    with workspace(tmp_path) as ft, sessions.serve(ft, str(TINY), terms) as up:
        assert not up.keyed
        raw = Raw(up.url)
        model = raw.model(seed=1)
        raw.forward(model, 1)
        saved = raw.result(raw.post("save_weights", model_id=model, seq_id=2, path="kept")).json()["path"]
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            words = line.read_bytes() if line.exists() else b""
            stat = (line.parent / "stat").read_text().rpartition(")")[2].split() if line.exists() else []
            if b"orchestrate.local.sessions.process" in words and stat and int(stat[1]) == os.getpid():
                os.kill(int(line.parent.name), signal.SIGKILL)
        until(lambda: raw.post("get_info", model_id=model).status_code == 404)
        session = raw.post("create_session").json()["session_id"]
        made = raw.post("load_weights", session_id=session, model_seq_id=0, path=saved, optimizer=True)
        assert "error" not in raw.result(made).json()
        assert b"loss:sum" in raw.result(raw.forward(made.json()["model_id"], 1)).content
        raw.http.close()


def test_what_was_saved_is_an_adapter_like_any_other(raw: Raw, home: Path) -> None:
    from orchestrate.local.answers.model_loader import is_adapter
    from orchestrate.local.model.adapters import is_removable

    model = raw.model()
    raw.result(raw.post("save_weights_for_sampler", model_id=model, seq_id=1, path="served"))
    [folder] = (home / "sessions" / "weights").glob(f"*/{model.replace(':', '@')}/sampler_weights/served")
    assert is_adapter(folder) and is_removable(folder)
    assert json.loads((folder / "saved.json").read_bytes())["base"] == NAME
