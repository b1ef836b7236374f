"""Predicted times of answers against what others measured and published, none of which set the model."""

from __future__ import annotations

import pytest

from orchestrate import catalog
from orchestrate.costing.latency import BAND, LARGER, Latency, faster_by, gpu, of_model, predict

LMDEPLOY = "InternLM/lmdeploy docs/en/benchmark/a100_fp16.md, v0.1.0a1, one request"
NIM = "docs.nvidia.com/nim/benchmarking/llm/1.0.0/performance, NIM 1.8.0, concurrency 1"
GUARD = "docs.nvidia.com/nim/llama-3-1-nemotron-safety-guard-8b/1.10.1/performance, concurrency 1"

FITTED = [
    ("A100 80GB", 1, 6.74, 2.0, 2048, 139.0, 10.0, LMDEPLOY),
    ("A100 80GB", 4, 68.98, 2.0, 2048, 402.0, 31.0, LMDEPLOY),
]
"""Milliseconds to the first token, and of each further one (0: not told)."""
CHECKED = [
    ("A100 80GB", 1, 6.74, 2.0, 128, 22.0, 1000 / 102.21, LMDEPLOY),
    ("A100 80GB", 1, 13.02, 2.0, 128, 40.0, 1000 / 56.58, LMDEPLOY),
    ("A100 80GB", 1, 13.02, 2.0, 2048, 242.0, 19.0, LMDEPLOY),
    ("A100 80GB", 4, 68.98, 2.0, 128, 74.0, 1000 / 33.63, LMDEPLOY),
    ("A100 80GB", 1, 8.03, 2.0, 500, 48.3, 0.0, GUARD),
    ("H100", 2, 70.6, 1.0, 500, 47.77, 18.91, NIM),
    ("H100", 2, 70.6, 1.0, 5000, 406.77, 18.58, NIM),
]


def made(name: str, count: int, params_b: float, width: float, tokens: int) -> Latency:
    device = gpu(name, count, width)
    assert device is not None
    return predict(device, "m", params_b, width, (tokens, 128))


@pytest.mark.parametrize(
    ("name", "count", "params_b", "width", "tokens", "first_ms", "each_ms", "source"), FITTED + CHECKED
)
def test_published_times_are_predicted_within_30_percent(
    name: str,
    count: int,
    params_b: float,
    width: float,
    tokens: int,
    first_ms: float,
    each_ms: float,
    source: str,
) -> None:
    found = made(name, count, params_b, width, tokens)
    for predicted, measured in ((found.first_token_ms, first_ms), (found.token_ms, each_ms)):
        if measured:
            assert abs(predicted - measured) <= 0.3 * measured, source
            assert measured / BAND <= predicted <= measured * BAND, source


def test_a_token_by_hand() -> None:
    """16 GB at 0.7 of 2.039 TB/s are 11.2 ms; 1,000 tokens of prompt are 1.6e13 operations, at 0.68 of 312
    TFLOPS 75.4 ms."""
    found = made("A100 80GB", 1, 8.0, 2.0, 1000)
    assert found.token_ms == pytest.approx(11.21, abs=0.01)
    assert found.first_token_ms == pytest.approx(75.41 + 11.21, abs=0.02)
    assert found.answer_ms == pytest.approx(found.first_token_ms + 127 * found.token_ms)
    assert found.within(found.answer_ms) is None
    assert (found.within(2 * found.answer_ms), found.within(found.answer_ms / 2)) == (True, False)


def test_a_small_model_in_place_of_a_large_one() -> None:
    """The guide: 3 to 5 times as fast. An 8B on one H100 against 70B on the four that it needs."""
    tokens = (900, 150)
    small = of_model(catalog.find("llama-3.1-8b"), tokens, ["H100"])
    large = of_model(catalog.find(LARGER), tokens, ["H100"])
    times = faster_by(small, large)
    assert times is not None and 2 < times[0] < 6
    assert (small[0].gpus, large[0].gpus) == (1, 4)
