"""The examples of OpenAI's published description, as they stand there, run by curl: only the host in their
address and the ids are others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.unit.gateway.conftest import Gateway, deployed, ended, gateway_of, rows, until
from tests.unit.gateway.test_published import described, wrong

from orchestrate.sandbox.server import Sandbox

pytestmark = [
    pytest.mark.slow,  # the same routes are asked by the SDK in the fast half
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
EXAMPLES: list[dict[str, str]] = json.loads(
    Path(__file__).with_name("published_curl.json").read_text(encoding="utf-8")
)["examples"]
TABLE = {
    "models": {
        "gpt-4o-mini": {"backend": "together", "model": "qwen3-8b"},
        "o4-mini": {"backend": "fireworks", "model": "qwen3-8b"},
    }
}
REFUSED: dict[str, tuple[int, str]] = {
    "POST /fine_tuning/jobs DPO": (422, "also in train"),
    "POST /fine_tuning/jobs Validation file": (422, "also in train"),
    "POST /fine_tuning/jobs Reinforcement": (422, "grader"),  # that host has graders of its own only
    "POST /fine_tuning/jobs W&B Integration": (422, "JSON"),  # a comma is missing in it
    "POST /completions No streaming": (422, "/v1/chat/completions"),
    "POST /completions Streaming": (422, "/v1/chat/completions"),
    "POST /responses Image input": (422, "text"),
    "POST /responses File input": (422, "text"),
    "POST /responses Web search": (422, "only function tools"),
    "POST /responses File search": (422, "only function tools"),
    "POST /fine_tuning/jobs/{fine_tuning_job_id}/pause": (422, "pause"),
    "POST /fine_tuning/jobs/{fine_tuning_job_id}/resume": (422, "resume"),
}
"""What is not answered here, and a word of why."""


def name_of(example: dict[str, str]) -> str:
    return f"{example['operation']} {example['title']}".strip()


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory, sandbox: Sandbox) -> Iterator[tuple[Gateway, str]]:
    """A gateway with a model that was tuned, and is deployed on its host."""
    with gateway_of(tmp_path_factory.mktemp("curl"), sandbox.env, TABLE) as gateway:
        with gateway.client() as client:
            file = client.files.create(file=("t.jsonl", rows(mark="curl")), purpose="fine-tune")
            job = client.fine_tuning.jobs.create(model="gpt-4o-mini", training_file=file.id)
            model = ended(client, job.id).fine_tuned_model
        made = gateway.ft.store.gateway_jobs.get(job.id)
        assert made is not None and made.run_id is not None
        deployed(gateway, made.run_id)
        yield gateway, model


def data_of(title: str) -> bytes:
    """Rows for the method that an example names."""
    if title == "DPO":
        turns = [
            {
                "input": {"messages": [{"role": "user", "content": f"q {n}"}]},
                "preferred_output": [{"role": "assistant", "content": f"a {n}"}],
                "non_preferred_output": [{"role": "assistant", "content": "no"}],
            }
            for n in range(12)
        ]
    elif title == "Reinforcement":
        turns = [{"messages": [{"role": "user", "content": f"q {n}"}], "label": f"{n}"} for n in range(12)]
    else:
        return rows(mark=title)
    return "".join(json.dumps(turn) + "\n" for turn in turns).encode()


def runnable(example: dict[str, str]) -> str:
    """Some examples break off a line too early, or leave their method out; and a shell would take their
    addresses apart."""
    method, curl = example["operation"].split(" ")[0], example["curl"]
    joined = re.sub(r"(?<!\\)\n(\s*-[A-Za-z] )", r" \\\n\1", curl)
    quoted = re.sub(r"^(curl (?:-X [A-Z]+ )?)(\S+)", r'\1"\2"', joined)
    said = method == "GET" or re.search(r"-X |-d |-F ", quoted)
    return quoted if said else quoted.replace("curl ", f"curl -X {method} ", 1)


class Things:
    """What an example is about, made for it."""

    def __init__(self, http: httpx.Client, example: dict[str, str], model: str) -> None:
        self._http, self._title, self.model = http, example["title"], model
        self._operation = example["operation"]

    def _upload(self, content: bytes) -> str:
        form = {"files": {"file": ("t.jsonl", content)}, "data": {"purpose": "fine-tune"}}
        return self._http.post("files", **form).json()["id"]  # type: ignore[arg-type]

    def named(self, told: str) -> str:
        """The id that stands for one of the example's."""
        if told.startswith("file-"):
            content = data_of(self._title)
            return self._upload(content.replace(b"q ", b"held out ") if told == "file-123" else content)
        if told.startswith("ftjob-") or told.startswith("ft-"):
            body = {"model": "gpt-4o-mini", "training_file": self._upload(rows(mark="job"))}
            return self._http.post("fine_tuning/jobs", json=body).json()["id"]
        if told.startswith("upload_"):
            body = {"bytes": 2, "filename": "u.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
            self.upload = self._http.post("uploads", json=body).json()["id"]
            return self.upload
        if told.startswith("part_"):
            content = b"{" if told == "part_def456" else b"}"
            return self._http.post(f"uploads/{self.upload}/parts", files={"data": content}).json()["id"]
        if told.startswith("cp_"):
            url = f"fine_tuning/checkpoints/{self.model}/permissions"
            return self._http.post(url, json={"project_ids": ["p"]}).json()["data"][0]["id"]
        if self._operation.startswith("DELETE /models"):
            job = self.named("ftjob-abc123")
            until(lambda: self._http.get(f"fine_tuning/jobs/{job}").json()["status"] == "succeeded")
            return self._http.get(f"fine_tuning/jobs/{job}").json()["fine_tuned_model"]
        return self.model


_NAMES = re.compile(
    r"file-[A-Za-z0-9]+|ftjob-[A-Za-z0-9]+|ft-[A-Za-z0-9]{20,}|upload_abc123|part_(?:def456|ghi789)|cp_\w+"
    r"|ft:gpt-4o-mini[^/\"\s]*|VAR_\w+"
)


@pytest.mark.parametrize(
    "example", EXAMPLES, ids=[f"{e['operation']} {e['title']}".strip() for e in EXAMPLES]
)
def test_an_example(there: tuple[Gateway, str], example: dict[str, str], tmp_path: Path) -> None:
    gateway, model = there
    name = name_of(example)
    with gateway.http() as http:
        things, known = Things(http, example, model), dict[str, str]()
        command = runnable(example)
        for told in _NAMES.findall(command):
            known.setdefault(told, things.named(told))
        command = _NAMES.sub(lambda match: known[match.group()], command)
        if example["operation"].endswith(("/chat/completions", "/completions", "/responses")):
            command = re.sub(r'"model": "[^"]+"', f'"model": "{model}"', command)
    (tmp_path / "mydata.jsonl").write_bytes(rows(mark="my data"))
    own = 'curl() { command curl --globoff --silent --show-error --dump-header head "$@"; }\n'
    script = own + command.replace("https://api.openai.com/v1", gateway.url)
    env = {"OPENAI_API_KEY": "no-key-here", "PATH": "/usr/local/bin:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    head = (tmp_path / "head").read_text().strip().split("\n\n")[-1]
    status = int(head.split()[1])
    body = done.stdout or (tmp_path / "file.jsonl").read_bytes()
    expected, word = REFUSED.get(name, (200, ""))
    assert status == expected and word in body.decode(), body
    if expected != 200:
        assert "x-should-retry: false" in head
    judge(example, status, body, head)


def judge(example: dict[str, str], status: int, body: bytes, head: str) -> None:
    """By the published description, where it has a schema for it."""
    method, path = example["operation"].split(" ", 1)
    if "application/json" not in head:
        return
    if status < 300 and path not in described()["paths"]:
        return
    request = httpx.Request(method, f"http://x/v1{re.sub(r'{[^}]+}', 'x', path)}")
    assert wrong(httpx.Response(status, content=body, request=request)) == []


def test_each_refused_example_is_one() -> None:
    assert set(REFUSED) <= set(map(name_of, EXAMPLES))
