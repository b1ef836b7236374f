"""Several adapters made one, judged by the sum of their own matrices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.paths import TINY
from tests.unit.serving.conftest import in_process, random_adapter

from orchestrate.errors import UsageError
from orchestrate.serving.combining import combine
from orchestrate.serving.tuned import Tuned
from orchestrate.types import Merged

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Tuned]:
    """Of other ranks and other targets."""
    home = tmp_path_factory.mktemp("parts")
    folders = [
        random_adapter(home / "a", 1),
        random_adapter(home / "b", 2, r=4, target_modules=["q_proj", "v_proj"]),
    ]
    return [Tuned(f.name, f, str(TINY), "adapter") for f in folders]


def combined(
    parts: list[Tuned], folder: Path, method: str, weights: list[float] | None = None, **how: float
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
    method: str, how: dict[str, float], parts: list[Tuned], tmp_path: Path
) -> None:
    made = combined(parts, tmp_path / "x", method, [0.7, 0.3], **how)
    one, other = (deltas(p.folder) for p in parts)
    there = deltas(tmp_path / "x")
    assert there.keys() == one.keys() > other.keys()
    for key, delta in there.items():
        wanted = 0.7 * one[key] + 0.3 * other.get(key, torch.zeros_like(one[key]))
        torch.testing.assert_close(delta, wanted, atol=1e-5, rtol=1e-4)
    assert made.error < 1e-5 and made.rank == 12 and made.ranks == (8, 4)


def test_the_error_that_is_told_is_that_of_the_matrices(parts: list[Tuned], tmp_path: Path) -> None:
    made = combined(parts, tmp_path / "x", "svd", [1.0, 1.0])
    one, other, there = (deltas(f) for f in (parts[0].folder, parts[1].folder, tmp_path / "x"))
    wanted = {k: d + other.get(k, torch.zeros_like(d)) for k, d in one.items()}
    apart = sum(float((there[k] - d).square().sum()) for k, d in wanted.items())
    whole = sum(float(d.square().sum()) for d in wanted.values())
    assert (
        made.rank == 8 and made.error == pytest.approx((apart / whole) ** 0.5, rel=1e-3) and made.error > 0.01
    )


def test_the_folder_is_an_adapter_with_the_passports_of_its_parts(parts: list[Tuned], tmp_path: Path) -> None:
    made = combined(parts, tmp_path / "x", "ties", density=0.5)
    assert made.method == "ties_svd"  # the ranks differ
    names = {f.path for f in made.files}
    assert names >= {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    passport = json.loads((tmp_path / "x" / "passport.json").read_bytes())
    assert [p["of"] for p in passport["merged"]["parts"]] == ["a", "b"]
    assert sum(p["weight"] for p in passport["merged"]["parts"]) == 1
    assert any("evaluate the result and each of its parts" in note for note in made.notes)


def test_what_cannot_be_merged_is_refused(parts: list[Tuned], tmp_path: Path) -> None:
    other = Tuned("c", parts[0].folder, "another/base", "adapter")
    whole = Tuned("d", TINY, str(TINY), "full")
    for given, method, how, said in (
        ([parts[0], other], "svd", {}, "different bases"),
        ([parts[0], whole], "svd", {}, "not an adapter"),
        (parts[:1], "svd", {}, "merging needs at least two adapters"),
        (parts, "slerp", {}, "known: svd, cat"),
        (parts, "svd", {"density": 0.5}, "has no density, because it prunes nothing"),
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


def test_linear_warns_as_its_authors_do(parts: list[Tuned], tmp_path: Path) -> None:
    made = combined([parts[0], parts[0]], tmp_path / "x", "linear")
    assert "very rough" in made.notes[0]
