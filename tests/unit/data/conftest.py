"""Shared by the data tests."""

from __future__ import annotations

import random
from importlib.util import find_spec

import pytest

collect_ignore = [] if find_spec("ray") else ["test_data_ray.py"]


def corpus(count: int, seed: int = 3) -> list[str]:
    """Texts that tokenizers disagree about: scripts, digits, white space, punctuation, emoji, code, marks
    that look like special tokens."""
    r = random.Random(seed)
    pools = (
        "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "0123456789.,-+/ ",
        " \t\n\r\u00a0\u3000",
        "äöüßéèñçåøłžœ ÄÖÜ",
        "абвгдежз ыьэюя",
        "日本語の文章です漢字かな混じり",
        "한국어 문장입니다",
        "العربية نص بسيط",
        "हिन्दी में एक वाक्य",
        "😀👍🏽👨‍👩‍👧🇳🇴❤️",
        "(){}[]<>=!&|;:'\"`~^%$#@_\\",
        "\u200b\u200d\u0301\ufeff\u2028",
    )
    words = (
        "don't",
        "I'LL",
        "<|endoftext|>",
        "<|im_start|>",
        "def f(x):\n    return x",
        "https://a.example/?q=1",
        "…",
    )
    texts: list[str] = ["", " ", "\n\n\n", "a" * 300, "1" * 50]
    while len(texts) < count:
        pieces: list[str] = []
        for _ in range(r.randint(1, 12)):
            pool = r.choice(pools)
            pieces.append(
                "".join(r.choices(pool, k=r.randint(1, 20))) if r.random() < 0.85 else r.choice(words)
            )
        texts.append("".join(pieces))
    return texts


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return corpus(4000)
