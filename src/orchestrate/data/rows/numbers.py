"""JSON whose numbers keep every digit: a row's free fields, schemas and arguments are not ours to round."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any, cast

import msgspec


class Digits(float):
    """A number that no double holds, with its digits as they were written."""

    text: str

    def __new__(cls, text: str) -> Digits:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type[Digits], tuple[str]]:
        return Digits, (self.text,)


def number(text: str) -> float:
    """Reads a literal with a point or an exponent."""
    rounded = float(text)
    return rounded if Decimal(repr(rounded)) == Decimal(text) else Digits(text)


def _written(value: Any) -> Any:
    if isinstance(value, Digits):
        return msgspec.Raw(value.text.encode())
    raise NotImplementedError(f"{type(value).__name__} is not a value of JSON")


def digits_of(value: Any) -> str:
    """For encoders of other formats."""
    if isinstance(value, Digits):
        return value.text
    raise NotImplementedError(f"{type(value).__name__} is not a value of JSON")


decode = msgspec.json.Decoder(float_hook=number).decode
encode = msgspec.json.Encoder(enc_hook=_written).encode
encode_sorted = msgspec.json.Encoder(enc_hook=_written, order="deterministic").encode


def spaced(value: Any) -> str:
    """With a space after commas and colons, as Python's own encoder writes arguments."""
    return encode(value).decode() if _holds_digits(value) else json.dumps(value, ensure_ascii=False)


def _holds_digits(value: Any) -> bool:
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, Digits):
            return True
        if isinstance(one, dict | list):
            left += cast("dict[str, Any]", one).values() if isinstance(one, dict) else cast("list[Any]", one)
    return False
