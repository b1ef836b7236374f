"""Bases whose files hold them in few bits: read as they are, trained over, planned, and told where they
cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.paths import TINY
from tests.unit.local.sessions import make_session

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local.model.files import ModelFolder, Quantised, QuantisedUnreadable
from orchestrate.local.model.loader import load_base
from orchestrate.local.plan import ModelShape
from orchestrate.local.plan.memory import Setup, plan
from orchestrate.local.run.session import Session
from orchestrate.local.speed.peaks import held_bytes
from orchestrate.local.weights.merges import merge
from orchestrate.providers.local.translation import translate
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
]


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny model as transformers writes it in 4 and in 8 bits."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    configs = {
        "nf4": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    folders: dict[str, Path] = {}
    for name, config in configs.items():
        folders[name] = tmp_path_factory.mktemp("held") / name
        model: Any = AutoModelForCausalLM.from_pretrained(
            TINY, dtype=torch.bfloat16, quantization_config=config, local_files_only=True
        )
        model.save_pretrained(folders[name])
        AutoTokenizer.from_pretrained(TINY, local_files_only=True).save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    said = ({"role": "user", "content": "Is {} even?"}, {"role": "assistant", "content": "no, {}"})
    chats = [[{**m, "content": m["content"].format(n)} for m in said] for n in range(16)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    return path


def session(home: Path, rows: Path, ref: str, **job: Any) -> Session:
    job = {"adapter": {}, "precision": "bf16", **job}
    return make_session(home, rows, method={"type": "sft"}, ref=ref, **job)


def curve(made: Session) -> list[float]:
    made.loop.restore()
    made.loop.run()
    return [p.values["train_loss"] for p in made.run.metrics()]


@pytest.mark.slow
def test_a_base_in_4_bits_trains_as_one_that_is_put_into_them(
    tmp_path: Path, rows: Path, held: dict[str, Path]
) -> None:
    """To the bit: the 4 bits are the same."""
    usual = curve(session(tmp_path, rows, "usual"))
    folder = str(held["nf4"])
    for kind in ("lora", "qlora"):
        made = session(tmp_path, rows, kind, model=folder, adapter={"type": kind})
        kinds = {type(m).__name__ for m in made.loaded.inner.modules()}
        assert {"Linear4bit"} <= kinds
        assert curve(made) == usual
    with pytest.raises(UsageError, match=r"4-bit bitsandbytes format.*merging into quantized"):
        merge(ModelFolder(held["nf4"]), made.publish(), tmp_path / "merged", "bf16")


@pytest.mark.slow
def test_a_base_in_8_bits_is_read_as_transformers_reads_it(
    tmp_path: Path, rows: Path, held: dict[str, Path]
) -> None:
    from transformers import AutoModelForCausalLM

    made = session(tmp_path, rows, "a", model=str(held["int8"]), adapter={"type": "lora"})
    theirs: Any = AutoModelForCausalLM.from_pretrained(
        held["int8"], dtype=torch.bfloat16, local_files_only=True
    )
    ids, weights = made.loop.train.row(0)
    row = torch.tensor(ids.astype(int))[None]
    labels = torch.where(torch.tensor(weights) > 0, row[0], -100)[None]
    with torch.no_grad():
        loss = theirs(input_ids=row, labels=labels).loss.item()
    sums = made.loop.objective.run(made.loop.train, [0], 1.0, backward=False)
    assert sums.loss / sums.weight == pytest.approx(loss, rel=0.02)
    losses = curve(made)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_the_plan_counts_the_bits_of_the_files(
    tmp_path: Path, rows: Path, held: dict[str, Path], name: str
) -> None:
    made = session(tmp_path, rows, "a", model=str(held[name]), adapter={"type": "lora", "r": 1})
    shape = ModelShape.of(json.loads((held[name] / "config.json").read_bytes()))
    wanted = plan(shape, Setup(adapter="lora", rank=1), device="cpu", available_bytes=1).parts["weights"]
    adapter = 4 * sum(p.numel() for p in made.loaded.trainable.values())
    # bitsandbytes has maps of 256 numbers for each weight, which are much for a model so small.
    maps = 21 * 2 * 256 * 4 if name == "nf4" else 0
    assert held_bytes(made.loaded.model) - adapter - maps == pytest.approx(wanted, rel=0.03)


def test_all_weights_of_such_a_base_cannot_be_trained(
    tmp_path: Path, rows: Path, held: dict[str, Path]
) -> None:
    spec = {"model": str(held["nf4"]), "train": str(rows)}
    (refused,) = translate(JobSpec.parse({**spec, "adapter": "full"}), {}).refused
    assert refused.name == "adapter.type" and "4-bit bitsandbytes format" in str(refused.rule)
    (start,) = translate(
        JobSpec.parse({**spec, "adapter": {"type": "lora", "init_lora_weights": "pissa"}}), {}
    ).refused
    assert start.name == "adapter.init_lora_weights"
    for asked, sent in (({}, "qlora"), ({"adapter": "lora"}, "lora"), ({"adapter": "qlora"}, "qlora")):
        found = translate(JobSpec.parse({**spec, **asked}), {})
        (row,) = (r for r in found.settings if r.name == "adapter.type")
        assert not found.refused and row.sent == found.body["adapter"]["type"] == sent
        assert "the precision of its files, 4-bit bitsandbytes format" in str(row.rule)
    with pytest.raises(RunFailed, match="cannot be trained"):
        session(tmp_path, rows, "a", model=str(held["nf4"]), adapter={"type": "full"}, precision=None)


@pytest.mark.parametrize(
    ("config", "packages", "size"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "optimum gptqmodel", 0.5 + 2.5 / 128),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True},
            "gptqmodel",
            0.5 + 2.5 / 64,
        ),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, "optimum gptqmodel", 1.0),
    ],
)
def test_the_library_that_reads_a_base_is_named(config: dict[str, Any], packages: str, size: float) -> None:
    found = Quantised.of({"quantization_config": config})
    assert found is not None and found.bytes == pytest.approx(size)
    with pytest.raises(QuantisedUnreadable, match=f"{config['bits']}-bit {config['quant_method']}") as error:
        found.require(find=lambda name: None)
    assert error.value.fix == f"pip install {packages}"
    found.require(find=lambda name: name)


def test_a_base_that_no_library_here_reads_is_refused_before(tmp_path: Path) -> None:
    from importlib.util import find_spec

    if find_spec("gptqmodel") is not None:
        pytest.skip("gptqmodel is installed")
    folder = tmp_path / "gptq"
    shutil.copytree(TINY, folder)
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 128}
    (folder / "config.json").write_text(json.dumps(config))
    (refused,) = translate(JobSpec.parse({"model": str(folder), "train": "t"}), {}).refused
    assert refused.name == "model" and refused.outcome is Outcome.REFUSED
    assert "pip install gptqmodel" in str(refused.rule)
    with pytest.raises(QuantisedUnreadable, match=", and the package to read them is not installed"):
        load_base(folder, four_bit=True, device=torch.device("cpu"))
