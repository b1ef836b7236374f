"""Verify a folder of weights, loaded as any user would load it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from orchestrate.errors import UsageError
from orchestrate.local.weights import ask_all
from orchestrate.serving.proof.observations import MORE_TOKENS, ObservedAnswer, PromptView
from orchestrate.types import Canary, Fingerprint, Probe


class FolderPlace:
    """A model loaded from a folder with its own tokenizer, chat template and stop tokens. Loads safetensors
    with transformers and peft, and GGUF files with llama.cpp's library."""

    def __init__(
        self,
        folder: Path,
        fingerprint: Fingerprint,
        base: str,
        *,
        model: str,
        base_gguf: Path | None = None,
        ask: Callable[..., list[dict[str, Any]]] = ask_all,
    ) -> None:
        """Open the folder. `base` is the base model of the adapter or of the merged model. `base_gguf` is the
        base model for a GGUF adapter. Raises `UsageError` for a folder without weights."""
        self.at, self.model = str(folder), model
        self.notes: list[str] = []
        self._fingerprint, self._base, self._base_gguf, self._ask = fingerprint, base, base_gguf, ask
        self._file = _gguf(folder)
        self._folder = folder if folder.is_dir() else folder.parent
        self.engine = "llama.cpp" if self._file is not None else "transformers"
        if self._file is not None and self._file.name.endswith("-lora.gguf") and base_gguf is None:
            raise UsageError(
                f"{self._file.name} is an adapter and needs its base model as a GGUF file",
                fix="--base-gguf FILE",
            )

    @cached_property
    def _read(self) -> list[dict[str, Any]]:
        """Query the model once for everything, so it is loaded only once: answers to probes and canaries, and
        the base model's scores."""
        fingerprint = self._fingerprint
        probes = [{"messages": _list(p.messages), "tools": _tools(p.tools)} for p in fingerprint.probes]
        rows = probes + [_row(c, c.tuned.ids) for c in fingerprint.canaries]
        bases = [{"score": [[c.ids, c.base.ids]]} for c in fingerprint.canaries]
        if self._file is not None:
            lora = self._file.name.endswith("-lora.gguf")
            file, adapter = (self._base_gguf, self._file) if lora else (self._file, None)
            given = {"file": str(file), "adapter": str(adapter) if adapter else None}
            tasks: list[dict[str, Any]] = [{"task": "read", "rows": rows, **given}]
            if lora:
                tasks.append({"task": "read", "rows": bases, "file": str(file)})
            answers = self._ask(tasks, module="conversion")
        else:
            answers = self._ask(
                [
                    {
                        "task": "read",
                        "folder": str(self._folder),
                        "rows": rows,
                        "base": self._base,
                    },
                    {"task": "read_base", "base": self._base, "rows": bases},
                ]
            )
        return [row for answer in answers for row in answer["answers"]]

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]:
        return [PromptView(ids=a.get("ids"), refused=a.get("refused")) for a in self._read[: len(probes)]]

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer] | None:
        if base:
            return None
        return [
            ObservedAnswer(text=a.get("text", ""), ended=a.get("ended"), ids=a.get("answer"))
            for a in self._of(canaries, base=False)
        ]

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float | None]] | None:
        found = self._of(canaries, base=base)
        return [answer["scores"][0] for answer in found if "scores" in answer] if found else None

    def _of(self, canaries: Sequence[Canary], *, base: bool) -> list[dict[str, Any]]:
        first = len(self._fingerprint.probes) + (len(canaries) if base else 0)
        return self._read[first : first + len(canaries)]


def _gguf(folder: Path) -> Path | None:
    files = [folder] if folder.suffix == ".gguf" else sorted(folder.glob("*.gguf"))
    if not files and not list(folder.glob("*.safetensors")):
        raise UsageError(f"{folder} has no weights, neither safetensors nor GGUF")
    return files[0] if files else None


def _row(canary: Canary, known: Sequence[int]) -> dict[str, Any]:
    row: dict[str, Any] = {"score": [[canary.ids, known]], "max_tokens": len(known) + MORE_TOKENS}
    if canary.text is not None:
        return {"text": canary.text, **row}
    return {"messages": _list(canary.messages), "tools": _tools(canary.tools), **row}


def _list(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return list(messages)


def _tools(tools: Sequence[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    return list(tools) if tools else None
