"""The process behind `Generator`: JSON lines on stdin and stdout, the first one says what to load."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec

from orchestrate.errors import OrchestrateError

MOST_ROWS = 64
SMALL_MODEL_BYTES = 2 << 30
"""Weights up to this size are kept unpacked, with the values that their 4 bits stand for: nothing is unpacked
for each token."""

Send = Callable[[dict[str, Any]], None]


class Answerer:
    """Holds the model; `answer` takes one request."""

    def __init__(self, request: dict[str, Any]) -> None:
        import torch

        from orchestrate.local.encoding.encoding import Template
        from orchestrate.local.model import models
        from orchestrate.local.model.loading import load_tokenizer, pick_device
        from orchestrate.local.model.sampling import Sampler

        if request.get("threads"):
            torch.set_num_threads(request["threads"])
        self.torch = torch
        self.device = pick_device(request.get("device"))
        self.folder = models.fetch(request["model"])
        self.adapter = Path(request["adapter"]) if request.get("adapter") else None
        self.whole = self.adapter is not None and not (self.adapter / "adapter_config.json").is_file()
        self.four_bit = request.get("four_bit")
        if self.four_bit is None:
            self.four_bit = self._trained_in_four_bit()
        has_own = self.adapter is not None and (self.adapter / "tokenizer.json").is_file()
        self.tokenizer = load_tokenizer(self.adapter if has_own and self.adapter else self.folder.path)
        self.tokenizer.padding_side = "left"
        self.template = Template(self.tokenizer)
        self.sampler = Sampler.of(self.template, self.folder, self.device)
        self._base: Any = None
        self._tuned: Any = None
        self._load()

    def _trained_in_four_bit(self) -> bool:
        try:
            passport = msgspec.json.decode((self.adapter or Path()).joinpath("passport.json").read_bytes())
            return passport["adapter"]["type"] == "qlora"
        except (OSError, msgspec.MsgspecError, KeyError, TypeError):
            return sum(p.stat().st_size for p in self.folder.weights) > 4 * SMALL_MODEL_BYTES

    def _load(self) -> None:
        from orchestrate.local.model.loading import dequantize, load_adapter, load_base

        if not self.whole:
            self._base = load_base(self.folder.path, four_bit=bool(self.four_bit), device=self.device)
            if self.four_bit and self._small():
                dequantize(self._base)
        if self.whole and self.adapter is not None:
            self._tuned = load_base(self.adapter, four_bit=False, device=self.device)
        elif self.adapter is not None:
            self._tuned = load_adapter(self._base, self.adapter)
        for model in (self._base, self._tuned):
            if model is not None:
                model.eval()

    def _small(self) -> bool:
        return sum(p.stat().st_size for p in self.folder.weights) <= SMALL_MODEL_BYTES

    def model(self, base: bool) -> tuple[Any, AbstractContextManager[Any]]:
        if not base or self.adapter is None:
            return (self._tuned if self._tuned is not None else self._base), nullcontext()
        if self.whole:
            if self._base is None:
                from orchestrate.local.model.loading import load_base

                self._base = load_base(self.folder.path, four_bit=False, device=self.device).eval()
            return self._base, nullcontext()
        return self._tuned, self._tuned.disable_adapter()

    def answer(self, request: dict[str, Any], send: Send) -> None:
        texts = [self._prompt(p, request.get("tools")) for p in request["prompts"]]
        self.torch.manual_seed(request["seed"])
        model, adapter = self.model(request["base"])
        with adapter, self.torch.inference_mode():
            if request["stream"]:
                self._stream(model, texts[0], request, send)
                send({"done": True})
            else:
                send({"replies": self._batched(model, texts, request)})

    def likelihoods(self, request: dict[str, Any], send: Send) -> None:
        from orchestrate.local.answers.likelihood import likelihoods

        model, adapter = self.model(request["base"])
        with adapter:
            send({"likelihoods": likelihoods(model, self.template, self.device, request["likelihoods"])})

    def _prompt(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> list[int]:
        from orchestrate.data.rows.examples import ChatMessage

        return self.template.asked([msgspec.convert(m, ChatMessage) for m in messages], tools)

    def _batched(self, model: Any, prompts: list[list[int]], request: dict[str, Any]) -> list[dict[str, Any]]:
        answers = self.sampler.draw(
            model,
            prompts,
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            most_rows=MOST_ROWS,
        )
        return [self._reply(prompt, ids) for prompt, ids in zip(prompts, answers, strict=True)]

    def _reply(self, prompt: list[int], ids: list[int]) -> dict[str, Any]:
        stopped = bool(ids) and ids[-1] in self.sampler.stops
        return {
            "content": self.tokenizer.decode(ids[:-1] if stopped else ids, skip_special_tokens=True).strip(),
            "model": str(self.adapter or self.folder.hub_id or self.folder.path),
            "prompt_tokens": len(prompt),
            "completion_tokens": len(ids),
            "finish_reason": "stop" if stopped else "length",
        }

    def _stream(self, model: Any, prompt: list[int], request: dict[str, Any], send: Send) -> None:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        ids = self.torch.tensor([prompt]).to(self.device)
        failed: list[BaseException] = []

        def work() -> None:
            try:
                with self.torch.inference_mode():
                    mask = self.torch.ones_like(ids)
                    settings = self.sampler.settings(request["max_tokens"], request["temperature"])
                    model.generate(input_ids=ids, attention_mask=mask, streamer=streamer, **settings)
            except BaseException as error:  # noqa: BLE001  handed to the asking thread
                failed.append(error)
                streamer.end()

        thread = Thread(target=work)
        thread.start()
        for piece in streamer:
            if piece:
                send({"piece": piece})
        thread.join()
        if failed:
            raise failed[0]


def main() -> int:
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    def send(message: dict[str, Any]) -> None:
        answers.write(msgspec.json.encode(message) + b"\n")
        answers.flush()

    answerer: Answerer | None = None
    for line in sys.stdin.buffer:
        try:
            request = msgspec.json.decode(line, type=dict[str, Any])
            if answerer is None:
                answerer = Answerer(request)
                send({"ready": True})
            elif "likelihoods" in request:
                answerer.likelihoods(request, send)
            else:
                answerer.answer(request, send)
        except BrokenPipeError:
            return 0
        except Exception as error:  # noqa: BLE001  the asking process gets it
            traceback.print_exc()
            fix = error.fix if isinstance(error, OrchestrateError) else None
            send({"error": str(error), "kind": type(error).__name__, "fix": fix})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
