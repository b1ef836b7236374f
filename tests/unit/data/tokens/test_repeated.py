"""A text that comes again is counted once, in bounded memory. That counts stay the same is tested where they
are compared with tiktoken's and transformers'."""

from __future__ import annotations

import gc
import tracemalloc

from orchestrate.data.tokens import Counts


def test_a_text_of_all_rows_is_counted_once() -> None:
    asked: list[str] = []

    def count(texts: list[str]) -> list[int]:
        asked.extend(texts)
        return [len(text) for text in texts]

    counts, prompt = Counts(count), "You are a helpful assistant. " * 50
    for first in range(0, 3000, 100):
        texts = [text for row in range(first, first + 100) for text in (prompt, f"question {row}")]
        assert counts(texts) == [len(text) for text in texts]
    assert asked.count(prompt) == 1 and len(asked) == 3001


def test_texts_that_never_come_again_do_not_fill_the_memory() -> None:
    counts = Counts(lambda texts: [len(text) for text in texts])
    tracemalloc.start()
    try:
        for row in range(2000):
            assert counts([f"{row} " * 3000] * 16)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 << 20, f"{held:,} bytes of 30 MB are held"
