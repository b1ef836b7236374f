"""The official client for Node through a whole life."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.unit.gateway.conftest import ASKED, Gateway, rows

SCRIPT = """
import fs from "node:fs";
import OpenAI from "openai";
const client = new OpenAI({ maxRetries: 0 });
const file = await client.files.create({ file: fs.createReadStream("t.jsonl"), purpose: "fine-tune" });
const asked = { model: process.argv[2], training_file: file.id, suffix: "node" };
let job = await client.fineTuning.jobs.create(asked);
while (!["succeeded", "failed", "cancelled"].includes(job.status)) {
  await new Promise((done) => setTimeout(done, 100));
  job = await client.fineTuning.jobs.retrieve(job.id);
}
const events = await client.fineTuning.jobs.listEvents(job.id, { limit: 2 });
const checkpoints = await client.fineTuning.jobs.checkpoints.list(job.id);
const result = await client.files.content(job.result_files[0]);
let refused = null;
try {
  const messages = [{ role: "user", content: "a" }];
  await client.chat.completions.create({ model: job.fine_tuned_model, messages });
} catch (error) {
  refused = error.code;
}
console.log(JSON.stringify({
  status: job.status, model: job.fine_tuned_model, newest: events.data[0].message,
  checkpoints: checkpoints.data.length, result: await result.text(), refused,
}));
"""


@pytest.mark.slow
def test_a_whole_life(gateway: Gateway, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed (Debian: apt-get install nodejs npm)")
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    (tmp_path / "life.mjs").write_text(SCRIPT)
    (tmp_path / "t.jsonl").write_bytes(rows(mark="node"))
    subprocess.run(["npm", "install", "--silent", "openai"], cwd=tmp_path, check=True, timeout=300)
    env = {
        "OPENAI_BASE_URL": gateway.url,
        "OPENAI_API_KEY": "no-key-here",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
    }
    done = subprocess.run(
        [shutil.which("node") or "node", "life.mjs", ASKED],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["status"] == "succeeded" and found["model"].startswith(f"ft:{ASKED}:orchestrate:node:")
    assert found["newest"] == "The job has successfully completed"
    assert found["checkpoints"] and found["result"] and found["refused"] == "model_not_deployed"
