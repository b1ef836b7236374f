"""Run one task of `weights.ask` in this process, then exit. Imports torch."""

# torch, transformers and numpy are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jinja2
import msgspec
import torch

from orchestrate.data.rows import ChatMessage
from orchestrate.data.tokens.chat_templates import message as as_shown
from orchestrate.errors import DataError, UsageError
from orchestrate.local import proof
from orchestrate.local.encoding import Template
from orchestrate.local.model import files
from orchestrate.local.model.loader import DTYPES, load_adapter, load_base, load_tokenizer, pick_device
from orchestrate.local.model.sampling.sampler import Sampler, stop_tokens
from orchestrate.local.model.weights import auto_class
from orchestrate.local.proof import fingerprints
from orchestrate.local.weights import serve
from orchestrate.local.weights.merges import combine, combine_models, merge
from orchestrate.types import decoding


def dress(base: str, tuned: str | None, target: str) -> dict[str, Any]:
    """Write a model's files other than the weights to `target`: the tokenizer, the exact chat template used
    in training, and a generation configuration that stops at the end of a turn."""
    folder, own = files.fetch(base), None if tuned is None else Path(tuned)
    tokenizer = load_tokenizer(own if own and (own / "tokenizer.json").is_file() else folder.path)
    template = Template(tokenizer)
    stops = stop_tokens(template, folder)
    out = Path(target)
    tokenizer.save_pretrained(out)
    path = folder.path / "generation_config.json"
    given: dict[str, Any] = msgspec.json.decode(path.read_bytes()) if path.is_file() else {}
    config = {**given, "eos_token_id": list(stops), "pad_token_id": tokenizer.pad_token_id}
    (out / "generation_config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
    return {
        "stops": list(stops),
        "stop_words": [str(t) for t in tokenizer.convert_ids_to_tokens(list(stops))],
        "template": template.chats.source(None),
        "template_hash": fingerprints.template_hash(template),
        "bos": tokenizer.bos_token,
        "context": folder.config.get("max_position_embeddings"),
        "base_hash": folder.fingerprint(),
        "hub_id": folder.hub_id,
        "dtype": str(folder.config.get("dtype") or folder.config.get("torch_dtype") or "bfloat16"),
        "folder": str(folder.path),
    }


def render(base: str, tuned: str | None, conversations: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Render each conversation as the prompt for its next answer. `texts` contains `None` for a conversation
    that the template rejects."""
    folder, own = files.fetch(base), None if tuned is None else Path(tuned)
    tokenizer = load_tokenizer(own if own and (own / "tokenizer.json").is_file() else folder.path)
    template = Template(tokenizer)
    texts: list[str | None] = []
    for messages in conversations:
        try:
            texts.append(template.chats.prompt([decoding.convert(m, ChatMessage) for m in messages]))
        except DataError:
            texts.append(None)
    return {"texts": texts, "bos": tokenizer.bos_token}


def merged(base: str, adapter: str, target: str, dtype: str) -> dict[str, Any]:
    return merge(files.fetch(base), Path(adapter), Path(target), dtype)


def combined(base: str, adapters: list[str], target: str, **how: Any) -> dict[str, Any]:
    return combine(files.fetch(base), [Path(a) for a in adapters], Path(target), **how)


def combined_models(base: str, models: list[str], target: str, **how: Any) -> dict[str, Any]:
    return combine_models([Path(m) for m in models], Path(target), base=files.fetch(base).path, **how)


def fingerprint(
    base: str,
    tuned: str,
    data: Sequence[str] = (),
    *,
    device: str | None = None,
    precision: str | None = None,
    four_bit: bool = False,
) -> dict[str, Any]:
    """Create the fingerprint of an adapter or a full tuned model.

    The prompts come from the first file in `data` that contains any. The files contain rows in the canonical
    format. `precision` is bf16 or fp32. By default, it depends on the device."""
    where, folder, own = pick_device(device), files.fetch(base), Path(tuned)
    tokenizer = load_tokenizer(own if (own / "tokenizer.json").is_file() else folder.path)
    tokenizer.padding_side = "left"
    template = Template(tokenizer)
    dtype = DTYPES[precision] if precision else None
    base_model = load_base(folder.path, four_bit=four_bit, device=where, dtype=dtype).eval()
    if (own / "adapter_config.json").is_file():
        tuned_model = load_adapter(base_model, own).eval()
    else:
        tuned_model = load_base(own, four_bit=False, device=where, dtype=dtype).eval()
    found = fingerprints.find(
        fingerprints.BaseAndTuned(
            _using(base_model, tuned_model), template, Sampler.of(template, folder, where)
        ),
        next((p for p in (proof.of_data(Path(d), proof.CANDIDATES) for d in data) if p), []),
        base_model=folder.hub_id or str(folder.path),
        base_hash=folder.fingerprint(),
        precision=str(base_model.dtype).removeprefix("torch.") + (" on nf4" if four_bit else ""),
        context=folder.config.get("max_position_embeddings"),
    )
    return found.to_dict()


def _using(base: Any, tuned: Any) -> Callable[[bool], Any]:
    @contextmanager
    def using(wants_base: bool) -> Generator[Any]:
        with torch.inference_mode():
            if not wants_base:
                yield tuned
            elif hasattr(tuned, "disable_adapter"):
                with tuned.disable_adapter():
                    yield tuned
            else:
                yield base

    return using


def read(folder: str, rows: list[dict[str, Any]], *, base: str | None = None) -> dict[str, Any]:
    """Query an exported model and return `{"answers": [...], "precision": ...}`, with one answer per row.

    Loads the model with only transformers and peft, as any user would, and uses its own tokenizer, chat
    template and generation configuration. A row contains `messages` (and `tools`, if any) or `text`. It may
    also contain `score`, or only that: pairs of prompt ids and answer ids to score. `max_tokens` is the
    maximum length of the row's answer in tokens. If it is missing, only the prompt's token ids are
    returned."""
    from transformers import GenerationConfig

    path = Path(folder)
    tokenizer = _own_tokenizer(path)
    if (path / "adapter_config.json").is_file():
        if base is None:
            raise UsageError(f"{folder} is an adapter, but its base model is unknown")
        model = load_adapter(_as_published(files.fetch(base).path), path).eval()
    else:
        model = _as_published(path)
    config = GenerationConfig.from_pretrained(path, local_files_only=True)
    config.update(do_sample=False, temperature=None, top_p=None, top_k=None)
    answers: list[dict[str, Any]] = []
    with torch.inference_mode():
        for row in rows:
            answer: dict[str, Any] = {}
            if "messages" in row or "text" in row:
                try:
                    answer = _asked(model, tokenizer, config, row)
                except (jinja2.TemplateError, TypeError, KeyError) as error:
                    answer = {"refused": str(error)}
            if "score" in row:
                answer["scores"] = [
                    fingerprints.logprobs(model, prompt, said, model.device) for prompt, said in row["score"]
                ]
            answers.append(answer)
    return {"answers": answers, "precision": str(model.dtype).removeprefix("torch.")}


def _own_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(
            f"could not load a tokenizer from {path}, so programs that load this folder would "
            f"have to guess one: {str(error).strip()[:200]}",
            fix="to write a complete folder: orchestrate export RUN DIR --to peft",
        ) from error


def shown(message: dict[str, Any]) -> dict[str, Any]:
    """Convert a message to the form that chat templates expect. Tool call arguments are parsed into objects,
    as inference servers do."""
    return as_shown(decoding.convert(message, ChatMessage))


def read_base(base: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Score rows with a base model. Takes the same rows as `read`, but only uses their `score`. Returns
    `{"answers": [{"scores": [...]}]}`."""
    model = _as_published(files.fetch(base).path)
    with torch.inference_mode():
        found = [
            [fingerprints.logprobs(model, p, said, model.device) for p, said in row["score"]] for row in rows
        ]
    return {"answers": [{"scores": scores} for scores in found]}


def _asked(model: Any, tokenizer: Any, config: Any, row: dict[str, Any]) -> dict[str, Any]:
    if row.get("text") is not None:
        ids: list[int] = tokenizer(row["text"])["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            [shown(m) for m in row["messages"]],
            tools=row.get("tools"),
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
    if "max_tokens" not in row:
        return {"ids": ids}
    config.max_new_tokens = row["max_tokens"]
    given = torch.tensor([ids], device=model.device)
    out = model.generate(input_ids=given, attention_mask=torch.ones_like(given), generation_config=config)[
        0, len(ids) :
    ].tolist()
    ends = config.eos_token_id
    ended = bool(out) and out[-1] in (ends if isinstance(ends, list) else [ends])
    text = tokenizer.decode(out[:-1] if ended else out, skip_special_tokens=True)
    return {"ids": ids, "answer": out, "text": text, "ended": ended}


def _as_published(path: Path) -> Any:
    return (
        auto_class(path)
        .from_pretrained(
            path, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
        )
        .eval()
    )


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    "dress": dress,
    "render": render,
    "merge": merged,
    "combine": combined,
    "combine_models": combined_models,
    "fingerprint": fingerprint,
    "read": read,
    "read_base": read_base,
}


if __name__ == "__main__":
    raise SystemExit(serve(TASKS))
