"""Whether rows have anything to train on, as this machine's engine encodes them, before it trains."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

from orchestrate.data.dataset import Dataset
from orchestrate.data.rows.examples import PreferenceExample, UnpairedExample
from orchestrate.data.tokens import counting
from orchestrate.data.tokens.chat_templates import CHATML, with_settings
from orchestrate.data.tokens.hub_tokens import opened
from orchestrate.local.encoding.encoding import Rules, Template, encode_answer, encode_pair, encode_row


@dataclass(frozen=True)
class Looked:
    trains: bool
    """Whether a row has a token to train on."""
    lost: tuple[int, ...]
    """Of the long rows the numbers of those with none."""


def look(dataset: Dataset, counter: str, chat: dict[str, Any], rules: Rules, long: Collection[int]) -> Looked:
    """Reads rows until one has a token to train on, and all of `long`. `counter`: `hf:FOLDER`; `chat`:
    `chat_template`, `chat_template_kwargs` and `added_tokens`. Raises `DataError` for a row that cannot be
    encoded."""
    tokenizer = opened(counting.folder_of(counter), chat.get("added_tokens") or ())
    own = chat.get("chat_template") or tokenizer.template or CHATML
    template = Template(replace(tokenizer, template=with_settings(own, chat.get("chat_template_kwargs"))))
    trains, lost, left = False, list[int](), len(long)
    for number, example in dataset.numbered():
        if trains and not left:
            break
        left -= number in long
        if trains and number not in long:
            continue
        if _trained(example, template, rules):
            trains = True
        elif number in long:
            lost.append(number)
    return Looked(trains, tuple(lost))


def _trained(example: Any, template: Template, rules: Rules) -> bool:
    """Of a pair both sides are needed."""
    if isinstance(example, PreferenceExample):
        pair = encode_pair(example, template, rules)
        return bool(pair.preferred.trained and pair.rejected.trained)
    if isinstance(example, UnpairedExample):
        return bool(encode_answer(example, template, rules).trained)
    return any(one.trained for one in encode_row(example, template, rules))
