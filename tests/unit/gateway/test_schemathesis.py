"""Requests made up from OpenAI's published description: none ends in a 500, and no answer is other than
described, refusals included."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests import outside
from tests.contract.known_fields import read
from tests.unit.gateway.conftest import ASKED, Gateway, ended, rows

pytestmark = pytest.mark.slow

SECONDS = int(os.environ.get("GATEWAY_SCHEMATHESIS_S", "60"))
REFUSED = {
    "description": "refused",
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}},
}


@pytest.mark.outside
def test_made_up_requests(gateway: Gateway, tmp_path: Path) -> None:
    with gateway.client() as client:
        file = client.files.create(file=("t.jsonl", rows(mark="st")), purpose="fine-tune").id
        job = client.fine_tuning.jobs.create(model=ASKED, training_file=file).id
        model = ended(client, job).fine_tuned_model
        told: Any = {"bytes": 9, "filename": "u.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        upload = client.uploads.create(**told).id
    described = tmp_path / "described.json"
    described.write_text(json.dumps(of_what_is_there(file)))
    ids = {"fine_tuning_job_id": job, "upload_id": upload, "fine_tuned_model_checkpoint": model}
    # Every second request is for something that is there, by this file.
    (tmp_path / "schemathesis.toml").write_text(
        "[parameters]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in ids.items())
    )
    command = [
        *(outside.program("schemathesis", "st"), "run", str(described), "--url", gateway.url),
        *("--include-path-regex", "^/(fine_tuning|files|uploads|models)"),
        *("--checks", "not_a_server_error,response_schema_conformance", "--continue-on-failure"),
        *("--max-time", str(SECONDS), "--seed", "7", "--no-color", "--header", "Authorization:Bearer any"),
        *("--generation-allow-x00", "true", "--workers", "2"),
    ]
    env = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=SECONDS * 3 + 120
    )
    assert done.returncode == 0, done.stdout[-6000:]


def of_what_is_there(file: str) -> dict[str, Any]:
    """The description with two names that there are here, so that jobs are really made, and with the form of
    refusals, which it leaves out."""
    found: dict[str, Any] = json.loads(json.dumps(read("openai.yaml")))
    job = found["components"]["schemas"]["CreateFineTuningJobRequest"]["properties"]
    job["training_file"] = {"type": "string", "enum": [file]}
    job["model"] = {"type": "string", "enum": [ASKED]}
    for operations in found["paths"].values():
        for operation in operations.values():
            if isinstance(operation, dict) and "responses" in operation:
                operation["responses"].setdefault("default", REFUSED)
    return found
