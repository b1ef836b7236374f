"""What a worker finds in its environment."""

from __future__ import annotations

import pytest

from orchestrate.local.run.launcher import worker_environment
from orchestrate.settings import MORE_NAMES

NEEDED = {
    "PATH": "/bin",
    "HOME": "/home/me",
    "LANG": "C",
    "LC_ALL": "C",
    "TMPDIR": "/scratch",
    "CUDA_VISIBLE_DEVICES": "1",
    "NVIDIA_TF32_OVERRIDE": "0",
    "HF_TOKEN": "hf",
    "HF_HUB_OFFLINE": "1",
    "TORCHINDUCTOR_CACHE_DIR": "/c",
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "https_proxy": "http://proxy",
    "PYTHONPATH": "/src",
}
SECRET = (
    "OPENAI_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY",
    "ORCHESTRATE_STORE", "GITHUB_TOKEN", "SSH_AUTH_SOCK", "MY_HF_TOKEN",
)  # fmt: skip


def test_a_worker_gets_what_it_needs_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRET:
        monkeypatch.setenv(name, "secret")
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)
    found = worker_environment(None)
    assert "secret" not in found.values()
    assert {name: found[name] for name in NEEDED} == NEEDED
    assert found["PYTORCH_CUDA_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv(MORE_NAMES, "AWS_SECRET_ACCESS_KEY, OTHER")
    assert worker_environment(2)["AWS_SECRET_ACCESS_KEY"] == "secret"
    assert worker_environment(2)["OMP_NUM_THREADS"] == "2"
