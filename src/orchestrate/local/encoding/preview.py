"""Preview how this machine's engine encodes rows for training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrate import catalog
from orchestrate.data.dataset import Dataset
from orchestrate.data.operations.preview import PreviewReport, RowTokens, Token, texts
from orchestrate.data.passes.scan import DESIRABLE, UNDESIRABLE
from orchestrate.data.rows import Example, PreferenceExample, UnpairedExample, messages_of
from orchestrate.data.shapes.row_reader import visible
from orchestrate.data.tokens import counters
from orchestrate.data.tokens.chat_templates import CHATML, with_settings
from orchestrate.data.tokens.hub_tokens import opened
from orchestrate.errors import DataError, SetupError
from orchestrate.local.encoding import Encoded, Rules, Template, encode, encode_answer, encode_pair
from orchestrate.profile import this_machine
from orchestrate.spec.specfile import template_text

IMAGES = ("images are ignored: the engine on this machine trains only on text",)
LONGEST = 2_000_000
"""Maximum length in characters of a row in the preview. A longer row could have millions of tokens."""


def read_preview(
    file: str,
    model: str,
    first: int,
    count: int,
    masking: Mapping[str, Any],
    columns: Mapping[str, str],
    chat: Mapping[str, Any] | None = None,
) -> PreviewReport:
    """Show how the rows of a file are tokenized and which tokens are trained. `masking` may contain
    `max_seq_length`, `truncation`, `train_on_inputs`, `train_on` and `ignore_empty_think`. `chat` may contain
    `chat_template` and `chat_template_kwargs`. These settings mean the same as in a spec. Missing ones get
    their defaults. Raises `SetupError` if the model's tokenizer is not on this machine, `DataError` for a row
    number that does not exist, and `SpecError` for a chat template that cannot be read."""
    tokenizer = opened(tokenizer_folder(model))
    given, settings = ((chat or {}).get(name) for name in ("chat_template", "chat_template_kwargs"))
    own = template_text(given) if given else tokenizer.template or CHATML
    rules = Rules.of(masking, masking.get("max_seq_length"), masking.get("truncation"))
    template = Template(replace(tokenizer, template=with_settings(own, settings)))
    data = Dataset.open(file, columns=columns)
    if data.kind == "rl":
        raise DataError(
            f"{file} contains RFT prompts, which have no answers to preview",
            fix="use a file with chat, preference, prompt/completion or text rows",
        )
    rows: list[RowTokens] = []

    def add(number: int, example: Example, encoded: Encoded, side: str | None = None) -> None:
        shown = texts(encoded.ids, tokenizer.decode)
        # The first token is never predicted, so its weight has no effect.
        weights = [0.0, *encoded.weights[1:]]
        tokens = tuple(
            Token(id=i, text=t, weight=w, special=i in template.special)
            for i, t, w in zip(encoded.ids, shown, weights, strict=True)
        )
        rows.append(
            RowTokens(
                row=number,
                tokens=tokens,
                trained=encoded.trained,
                truncated=encoded.truncated,
                side=side,
                notes=encoded.notes + IMAGES * _has_images(example),
            )
        )

    for number, example in _from(data, first, count):
        if isinstance(example, PreferenceExample):
            pair = encode_pair(example, template, rules)
            add(number, example, pair.preferred, "preferred")
            add(number, example, pair.rejected, "rejected")
        elif isinstance(example, UnpairedExample):
            encoded = encode_answer(example, template, rules)
            add(number, example, encoded, DESIRABLE if example.label else UNDESIRABLE)
        else:
            encoded = encode(example, template, rules)
            add(number, example, encoded)
    return PreviewReport(path=file, model=model, rows=tuple(rows))


def _has_images(example: Example) -> bool:
    parts = (m.content for m in messages_of(example) if isinstance(m.content, list))
    return any(part.image_url is not None for content in parts for part in content)


def _from(data: Dataset, first: int, count: int) -> list[tuple[int, Example]]:
    found: list[tuple[int, Example]] = []
    for number, example in data.numbered():
        if number >= first:
            if (size := len(visible(example))) > LONGEST:
                raise DataError(
                    f"row {number} of {data.path} is too long to show ({size:,} characters)",
                    fix=f"skip this row: --row {number + 1}",
                )
            found.append((number, example))
        if len(found) == count:
            break
    if not found:
        raise DataError(
            f"{data.path} has no valid rows at or after row {first}", fix="orchestrate data check FILE"
        )
    return found


def tokenizer_folder(model: str) -> Path:
    """Return the folder that contains a model's tokenizer. Raises `SpecError` for a model that cannot be
    trained on this machine, and `SetupError` if the tokenizer is not on this machine."""
    found: Any = catalog.resolve(model, this_machine().kind)
    name = counters.for_model(tokenizer=None, hub=found.hub, folder=found.folder)
    if not name.startswith("hf:"):
        raise SetupError(
            f"the tokenizer of {model} is not on this machine",
            fix="pass a model folder that contains the tokenizer: --model FOLDER",
        )
    return Path(name[3:])
