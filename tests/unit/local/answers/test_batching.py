"""Rows that come and go together, judged by transformers' `generate` for each alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.paths import TINY
from tests.unit.serving.conftest import random_adapter
from transformers import AutoModelForCausalLM

from orchestrate.local.model.sampling import NO_MEMORY, SamplingSettings
from orchestrate.local.model.sampling.batching import BASE, Batching, DecodingRow

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
STOP = 2


def tiny_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two adapters, one of them with DoRA, and the base, under PEFT's names."""
    home = tmp_path_factory.mktemp("adapters")
    model = PeftModel.from_pretrained(tiny_model(), random_adapter(home / "a", 1), adapter_name="a")
    model.load_adapter(str(random_adapter(home / "b", 2, r=4, target_modules=["q_proj", "v_proj"])), "b")
    model.load_adapter(str(random_adapter(home / "c", 3, use_dora=True)), "c")
    return model.eval()


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[1, *(chance.randrange(3, 1280) for _ in range(chance.randint(3, 40)))] for _ in range(count)]


def alone(model: Any, adapter: str, prompt: list[int], most: int) -> list[int]:
    ids = torch.tensor([prompt])
    given = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "max_new_tokens": most,
        "do_sample": False,
    }
    if adapter == BASE and hasattr(model, "peft_config"):
        with model.disable_adapter():
            out = model.generate(**given, eos_token_id=STOP, pad_token_id=0)
    else:
        if hasattr(model, "peft_config"):
            model.set_adapter(adapter)
        out = model.generate(**given, eos_token_id=STOP, pad_token_id=0)
    return out[0, len(prompt) :].tolist()


def run(batching: Batching, rows: list[DecodingRow], arrivals: int = 2) -> int:
    """Rows arrive `arrivals` at each step; returns the most that were answered at once."""
    coming, most = list(rows), 0
    while coming or not batching.idle:
        batching.waiting += coming[:arrivals]
        del coming[:arrivals]
        for _ in batching.step():
            pass
        most = max(most, batching.rows)
    return most


def row(adapter: str, prompt: list[int], room: int = 24, **settings: Any) -> DecodingRow:
    return DecodingRow("k", adapter, prompt, SamplingSettings(**settings), room, frozenset({STOP}))


@pytest.mark.slow
@pytest.mark.parametrize("names", [("a",), (BASE,), ("a", "b", BASE), ("a", "c", BASE)])
def test_each_row_gets_what_it_gets_alone_whoever_comes_and_goes(
    names: tuple[str, ...], adapted: Any
) -> None:
    chance = random.Random(1)
    rows = [row(chance.choice(names), p, chance.randint(1, 24)) for p in prompts(30)]
    batching = Batching(adapted, most_rows=8)
    assert run(batching, rows, arrivals=20) >= 4
    for one in rows:
        assert one.ids == alone(adapted, one.adapter, one.prompt, one.room)
    assert len({tuple(r.ids) for r in rows}) > 10
    assert batching.idle


def test_rows_share_their_steps(adapted: Any) -> None:
    """Each prompt is read once, and then one step gives each row its next token."""
    rows = [
        DecodingRow("k", ("a", BASE)[n % 2], p, SamplingSettings(), 20, frozenset())
        for n, p in enumerate(prompts(16))
    ]
    batching, steps = Batching(adapted, most_rows=16), list[None]()
    counting = adapted.register_forward_hook(lambda *_: steps.append(None))
    run(batching, rows, arrivals=16)
    counting.remove()
    assert all(len(row.ids) == 20 for row in rows)
    assert len(steps) <= len(rows) + 20 + len(rows), len(steps)


@pytest.mark.slow
def test_rows_that_are_mixed_without_pefts_hooks_get_the_same(tmp_path: Path) -> None:
    """Adapters of other ranks and targets, added while rows go on; PEFT has its model back afterwards."""
    model = PeftModel.from_pretrained(
        tiny_model(), random_adapter(tmp_path / "a", 1), adapter_name="a"
    ).eval()
    batching = Batching(model, most_rows=8)
    batching.use(model)
    early = [row(name, p, 20) for name, p in zip(("a", BASE) * 3, prompts(6, 3), strict=True)]
    batching.waiting += early
    for _ in range(4):
        list(batching.step())
    batching.changing()
    model.load_adapter(str(random_adapter(tmp_path / "b", 2, r=4, target_modules=["q_proj", "v_proj"])), "b")
    batching.use(model.eval())
    late = [row(("a", "b", BASE)[n % 3], p, 20) for n, p in enumerate(prompts(12, 4))]
    run(batching, late)
    batching.changing()
    for one in (*early, *late):
        assert one.ids == alone(model, one.adapter, one.prompt, one.room)
    assert len({tuple(r.ids) for r in (*early, *late)}) > 8


@pytest.mark.parametrize(
    "kind", ["sliding", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("linear", "shared keys"))]
)
def test_other_kinds_of_caches(kind: str) -> None:
    torch.manual_seed(0)
    model = other_model(kind).eval()
    rows = [row(BASE, [i % 90 + 3 for i in p], 12) for p in prompts(8)]
    assert run(Batching(model, most_rows=8), rows) > 3
    for one in rows:
        assert one.ids == alone(model, BASE, one.prompt, one.room)


def other_model(kind: str) -> Any:
    from transformers import Gemma3nTextConfig, MistralConfig, Qwen3NextConfig
    from transformers.models.gemma3n.modeling_gemma3n import Gemma3nForCausalLM
    from transformers.models.mistral.modeling_mistral import MistralForCausalLM
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextForCausalLM

    shape: dict[str, Any] = {
        "vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "sliding":
        return MistralForCausalLM(MistralConfig(**shape, sliding_window=8))
    if kind == "linear":
        more = {
            "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16, "num_experts": 0, "mlp_only_layers": [0, 1, 2, 3],
        }  # fmt: skip
        return Qwen3NextForCausalLM(Qwen3NextConfig(**shape, **more))
    more = {"num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2}
    return Gemma3nForCausalLM(
        Gemma3nTextConfig(
            **shape, **more, sliding_window=8, vocab_size_per_layer_input=100, hidden_size_per_layer_input=8,
            laurel_rank=4, activation_sparsity_pattern=[0.0] * 4,
        )
    )  # fmt: skip


def test_a_seed_draws_the_same_alone_and_in_company(adapted: Any) -> None:
    def drawn(company: int) -> list[int]:
        mine = row("a", prompts(1)[0], 16, temperature=1.0, generator=torch.Generator().manual_seed(7))
        others = [
            row("b", p, 20, temperature=1.0, generator=torch.Generator().manual_seed(n))
            for n, p in enumerate(prompts(company, 5))
        ]
        run(Batching(adapted, most_rows=8), [*others, mine], arrivals=3)
        return mine.ids

    assert drawn(0) == drawn(6)


def test_copies_share_one_reading_and_draw_their_own(adapted: Any) -> None:
    first, *copies = [
        row("a", prompts(1)[0], 12, temperature=2.0, generator=torch.Generator().manual_seed(n))
        for n in range(4)
    ]
    first.copies = copies
    run(Batching(adapted, most_rows=2), [first])
    assert len({tuple(r.ids) for r in (first, *copies)}) == 4


def test_a_cancelled_row_leaves_and_the_others_go_on(adapted: Any) -> None:
    rows = [row("a", p, 20) for p in prompts(4)]
    rows[1].key = "gone"
    for one in rows:
        one.stops = frozenset()
    batching = Batching(adapted, most_rows=8)
    batching.waiting += rows
    for _ in range(5):
        list(batching.step())
    batching.cancel("gone")
    kept = len(rows[1].ids)
    while not batching.idle:
        list(batching.step())
    assert len(rows[1].ids) == kept < 20 and all(len(r.ids) == 20 for r in rows if r is not rows[1])


@contextmanager
def little_memory(model: Any, rows: int) -> Iterator[list[int]]:
    """The second layer's pass over more rows ends as torch's does where memory runs out: the first layer has
    the token in its cache by then. Gives the rows of each failed pass."""
    failed: list[int] = []

    def fail(module: Any, args: Any) -> None:
        del module
        if len(args[0]) > rows:
            failed.append(len(args[0]))
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")

    hook = model.get_base_model().model.layers[1].register_forward_pre_hook(fail)
    try:
        yield failed
    finally:
        hook.remove()


def plainly_adapted(folder: Path) -> Any:
    """Two adapters of the kind that is mixed without PEFT's hooks."""
    model = PeftModel.from_pretrained(tiny_model(), random_adapter(folder / "a", 1), adapter_name="a")
    model.load_adapter(str(random_adapter(folder / "b", 2, r=4)), "b")
    return model.eval()


def mixing(model: Any) -> Batching:
    batching = Batching(model, most_rows=8)
    batching.use(model)
    return batching


def test_where_memory_runs_out_rows_go_on_fewer_at_once_with_the_same_tokens(tmp_path: Path) -> None:
    adapted = plainly_adapted(tmp_path)

    def rows() -> list[DecodingRow]:
        found = [row("ab"[n % 2], p, 20) for n, p in enumerate(prompts(7, 8))]
        for n, one in enumerate(found[:4]):
            one.settings = SamplingSettings(temperature=1.0, generator=torch.Generator().manual_seed(n))
        found[4].copies = [row("a", found[4].prompt, 20)]
        return found

    wanted, got = rows(), rows()
    enough = mixing(adapted)
    run(enough, wanted, arrivals=7)
    enough.changing()
    batching = mixing(adapted)
    with little_memory(adapted, 3) as failed:
        assert run(batching, got, arrivals=7) <= 8
    assert failed and batching.most_rows <= 3 and batching.idle
    assert [one.ids for one in got] == [one.ids for one in wanted]
    assert got[4].copies == [] and all(one.ended for one in got)


def test_a_row_that_never_fits_is_told_and_the_next_one_is_answered(tmp_path: Path) -> None:
    adapted = plainly_adapted(tmp_path)
    first, second = (row("a", p, 6) for p in prompts(2, 9))
    batching = mixing(adapted)
    batching.waiting.append(first)
    with little_memory(adapted, 0):
        [(told, drawn)] = list(batching.step())
    assert told is first and first.ended and drawn.failed == NO_MEMORY and first.ids == []
    run(batching, [second])
    batching.changing()
    assert second.ids == alone(adapted, "a", second.prompt, 6)


def test_log_probabilities_are_the_models_own(adapted: Any) -> None:
    prompt = prompts(1)[0]
    batching = Batching(adapted, most_rows=2)
    one = row(
        "a", prompt, 8, temperature=0.7, tops=3, presence=0.5, generator=torch.Generator().manual_seed(0)
    )
    batching.waiting.append(one)
    seen = []
    while not batching.idle:
        seen += [drawn for _, drawn in batching.step()]
    adapted.set_adapter("a")
    with torch.inference_mode():
        logits = adapted(input_ids=torch.tensor([[*prompt, *one.ids]])).logits[0]
    for n, drawn in enumerate(seen):
        wanted = torch.log_softmax(logits[len(prompt) - 1 + n], dim=-1)
        assert drawn.logprob == pytest.approx(float(wanted[drawn.id]), abs=1e-3)
        assert [i for i, _ in drawn.tops] == wanted.topk(3).indices.tolist()


def test_settings_of_one_row_by_hand() -> None:
    from orchestrate.local.model.sampling import draw

    logits = torch.tensor([[2.0, 1.0, 0.0, -9.0]])
    none: Counter[int] = Counter()

    def share(id: int, **settings: Any) -> float:
        given = SamplingSettings(temperature=1.0, generator=torch.Generator().manual_seed(0), **settings)
        return sum(draw(logits, [(given, none)])[0].id == id for _ in range(400)) / 400

    assert draw(logits, [(SamplingSettings(bias={3: 100.0}), none)])[0].id == 3
    assert draw(logits, [(SamplingSettings(frequency=1.0), Counter({0: 2}))])[0].id == 1
    assert draw(logits, [(SamplingSettings(presence=1.5), Counter({0: 1}))])[0].id == 1
    assert share(0) == pytest.approx(0.665, abs=0.07)  # e^2 / (e^2 + e + 1)
    assert share(0, top_k=1) == 1
    assert share(1, top_p=0.67) == pytest.approx(0.269, abs=0.07)  # of the first two
    assert share(2, top_p=0.67) == 0
