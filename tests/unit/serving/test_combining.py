"""Several adapters made one, judged by the sum of their own matrices."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.paths import TINY
from tests.unit.serving.conftest import in_process, random_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrate.errors import UsageError
from orchestrate.serving.combination import combine
from orchestrate.serving.tuned import TunedModel
from orchestrate.types import Merged

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[TunedModel]:
    """Of other ranks and other targets."""
    home = tmp_path_factory.mktemp("parts")
    folders = [
        random_adapter(home / "a", 1),
        random_adapter(home / "b", 2, r=4, target_modules=["q_proj", "v_proj"]),
    ]
    return [TunedModel(f.name, f, str(TINY), "adapter") for f in folders]


def combined(
    parts: list[TunedModel], folder: Path, method: str, weights: list[float] | None = None, **how: float
) -> Merged:
    given = {"density": None, "rank": None, **how}
    return combine(
        parts, [p.name for p in parts], folder, method=method, weights=weights, work=in_process, **given
    )  # type: ignore[arg-type]


def deltas(folder: Path) -> dict[str, torch.Tensor]:
    """alpha / r * B A of each matrix, from the files alone."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    found: dict[str, torch.Tensor] = {}
    for name, a in tensors.items():
        if ".lora_A." in name:
            key = name.partition(".lora_A.")[0]
            rank = config.get("rank_pattern", {}).get(key.rpartition(".")[2], config["r"])
            found[key] = config["lora_alpha"] / rank * tensors[name.replace("lora_A", "lora_B")] @ a
    return found


@pytest.mark.parametrize(("method", "how"), [("cat", {}), ("svd", {"rank": 12})])
def test_the_precise_methods_give_the_weighted_sum(
    method: str, how: dict[str, float], parts: list[TunedModel], tmp_path: Path
) -> None:
    made = combined(parts, tmp_path / "x", method, [0.7, 0.3], **how)
    one, other = (deltas(p.folder) for p in parts)
    there = deltas(tmp_path / "x")
    assert there.keys() == one.keys() > other.keys()
    for key, delta in there.items():
        wanted = 0.7 * one[key] + 0.3 * other.get(key, torch.zeros_like(one[key]))
        torch.testing.assert_close(delta, wanted, atol=1e-5, rtol=1e-4)
    assert made.error < 1e-5 and made.rank == 12 and made.ranks == (8, 4)


def test_the_error_that_is_told_is_that_of_the_matrices(parts: list[TunedModel], tmp_path: Path) -> None:
    made = combined(parts, tmp_path / "x", "svd", [1.0, 1.0])
    one, other, there = (deltas(f) for f in (parts[0].folder, parts[1].folder, tmp_path / "x"))
    wanted = {k: d + other.get(k, torch.zeros_like(d)) for k, d in one.items()}
    apart = sum(float((there[k] - d).square().sum()) for k, d in wanted.items())
    whole = sum(float(d.square().sum()) for d in wanted.values())
    assert (
        made.rank == 8 and made.error == pytest.approx((apart / whole) ** 0.5, rel=1e-3) and made.error > 0.01
    )


def test_the_folder_is_an_adapter_with_the_passports_of_its_parts(
    parts: list[TunedModel], tmp_path: Path
) -> None:
    made = combined(parts, tmp_path / "x", "ties", density=0.5)
    assert made.method == "ties_svd"  # the ranks differ
    names = {f.path for f in made.files}
    assert names >= {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    provenance = json.loads((tmp_path / "x" / "passport.json").read_bytes())
    assert [p["of"] for p in provenance["merged"]["parts"]] == ["a", "b"]
    assert sum(p["weight"] for p in provenance["merged"]["parts"]) == 1
    assert any("evaluate each part with orchestrate eval" in note for note in made.notes)


def test_what_cannot_be_merged_is_refused(parts: list[TunedModel], tmp_path: Path) -> None:
    other = TunedModel("c", parts[0].folder, "another/base", "adapter")
    whole = TunedModel("d", TINY, str(TINY), "full")
    for given, method, how, said in (
        ([parts[0], other], "svd", {}, "different bases"),
        ([parts[0], whole], "svd", {}, "cannot be merged with adapters"),
        (parts[:1], "svd", {}, "merging needs at least two adapters"),
        (parts, "slerp", {}, "known: svd, cat"),
        (parts, "svd", {"density": 0.5}, "has no density setting, because it does not prune weights"),
        (parts, "ties", {"density": 1.5}, "at most 1"),
        (parts, "cat", {"rank": 4}, "has no rank setting"),
        (parts, "linear", {}, "same r value"),
    ):
        with pytest.raises(UsageError, match=said):
            combined(given, tmp_path / "x", method, **how)
        assert not (tmp_path / "x").exists()
    with pytest.raises(UsageError, match="2 adapters need 2 weights"):
        combined(parts, tmp_path / "x", "svd", [1.0])
    for weights in ([float("nan"), 1.0], [float("inf"), 1.0], [0.0, 0.0]):
        with pytest.raises(UsageError, match="finite numbers"):
            combined(parts, tmp_path / "x", "svd", weights)


def test_linear_warns_as_its_authors_do(parts: list[TunedModel], tmp_path: Path) -> None:
    made = combined([parts[0], parts[0]], tmp_path / "x", "linear")
    assert "advise against it" in made.notes[0]


# -- full models -------------------------------------------------------------------------------------


def model_of(folder: Path, seed: int) -> TunedModel:
    """The tiny model in 32 bits with every tensor moved a little, as a full model."""
    shutil.copytree(TINY, folder)
    draw = torch.Generator().manual_seed(seed)
    moved = {
        name: tensor.float() + 0.05 * torch.randn(tensor.shape, generator=draw)
        for name, tensor in load_file(TINY / "model.safetensors").items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((TINY / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    return TunedModel(folder.name, folder, str(TINY), "full")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[TunedModel]:
    pytest.importorskip("mergekit")
    home = tmp_path_factory.mktemp("models")
    return [model_of(home / name, seed) for name, seed in (("a+x@1", 1), ("b", 2))]


def weights_of(*models: Path) -> list[dict[str, torch.Tensor]]:
    return [{n: t.double() for n, t in load_file(m / "model.safetensors").items()} for m in models]


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Shoemake 1985, of tensors as they are, along the angle between their directions."""
    dot = float((a / a.norm() * (b / b.norm())).sum())
    if abs(dot) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(dot)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def ties(base: torch.Tensor, parts: list[torch.Tensor], weights: list[float], density: float) -> torch.Tensor:
    """Yadav et al. 2023: the largest differences, the heavier sign, and the mean of those that have it."""
    kept: list[torch.Tensor] = []
    for part in parts:
        away = part - base
        least = away.abs().flatten().topk(int(density * away.numel())).values.min()
        kept.append(torch.where(away.abs() >= least, away, 0.0))
    weighted = torch.stack([w * away for w, away in zip(weights, kept, strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agree = torch.stack([(away.sign() == sign) for away in kept])
    total = (agree * torch.tensor(weights).view(-1, *[1] * base.dim())).sum(0)
    return base + (weighted * agree).sum(0) / total.where(total > 1e-8, torch.ones_like(total))


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "slerp", "ties"])
def test_complete_models_are_merged_as_the_papers_say(
    method: str | None, models: list[TunedModel], tmp_path: Path
) -> None:
    made = combined(models, tmp_path / "x", method, [0.75, 0.25])  # type: ignore[arg-type]
    assert (made.method, made.rank, made.error, made.ranks) == (method or "linear", None, None, ())
    one, other, there, base = weights_of(models[0].folder, models[1].folder, tmp_path / "x", TINY)
    assert there.keys() == one.keys()
    for name, got in there.items():
        wanted = {
            "linear": lambda a, b, _: 0.75 * a + 0.25 * b,
            "slerp": lambda a, b, _: slerp(a, b, 0.25),
            "ties": lambda a, b, o: ties(o, [a, b], [0.75, 0.25], 0.5),
        }[made.method](one[name], other[name], base[name])
        # A change at the very edge of what TIES keeps may round to either side.
        apart = int((~torch.isclose(got, wanted, atol=1e-5, rtol=1e-4)).sum())
        assert apart <= (got.numel() // 1000 if method == "ties" else 0), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "x")
    assert loaded.num_parameters() > 1_000_000 and AutoTokenizer.from_pretrained(tmp_path / "x")
    provenance = json.loads((tmp_path / "x" / "passport.json").read_text())
    assert provenance["kind"] == "full" and [p["weight"] for p in provenance["merged"]["parts"]] == [
        0.75,
        0.25,
    ]


def test_models_that_do_not_fit_are_refused_before_anything_is_written(
    parts: list[TunedModel], tmp_path: Path
) -> None:
    one = model_of(tmp_path / "one", 1)
    short = model_of(tmp_path / "short", 2)
    tensors = load_file(short.folder / "model.safetensors")
    save_file(
        {n: t[:-1] if t.dim() == 1 else t for n, t in tensors.items()}, short.folder / "model.safetensors"
    )
    words = model_of(tmp_path / "words", 3)
    told = json.loads((words.folder / "tokenizer.json").read_text())
    told["model"]["vocab"] = {token: -n for token, n in told["model"]["vocab"].items()}
    (words.folder / "tokenizer.json").write_text(json.dumps(told))
    cut = model_of(tmp_path / "cut", 4)
    (cut.folder / "model.safetensors").write_bytes((cut.folder / "model.safetensors").read_bytes()[:-9])
    other = replace(model_of(tmp_path / "other", 5), base="other/base")
    for wrong, method, weights, said in [
        ([one, parts[0]], "linear", None, "full model"),
        ([one, short], "linear", None, "different architectures"),
        ([one, words], "linear", None, "different vocabularies"),
        ([one, cut], "linear", None, "could not read"),
        ([one, other], "ties", None, "different bases"),
        ([one, one, one], "slerp", None, "two models"),
        ([one, one], "svd", None, "svd"),
        ([one, one], "linear", [1.0, -0.5], "negative"),
        ([one], "linear", None, "two models"),
    ]:
        with pytest.raises(UsageError, match=said):
            combined(wrong, tmp_path / "x", method, weights)
        assert not (tmp_path / "x").exists()
