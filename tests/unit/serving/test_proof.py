"""The proof of a folder: what is as it was trained passes, and each thing that goes wrong in the field is
seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.paths import TINY
from tests.unit.serving.conftest import Known, in_process

from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.types import Proof, Sheet

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def proof_of(folder: Path, sheet: Sheet) -> Proof:
    place = FolderPlace(folder, sheet, str(TINY), model="tuned", ask=in_process)
    return verify(sheet, place, run_id="r")


def states(proof: Proof) -> dict[str, str]:
    return {stage.name: stage.state for stage in proof.stages}


def test_the_sheet_holds_what_tells_base_and_tuned_apart(known: Known) -> None:
    sheet = known.sheet
    assert {p.kind for p in sheet.probes} >= {
        "plain",
        "system",
        "multi-turn",
        "tools",
        "special tokens",
        "Unicode",
    }
    assert len(sheet.canaries) >= 4
    for canary in sheet.canaries:
        assert canary.tuned.text != canary.base.text
        assert len(canary.tuned.ids) == len(canary.tuned.logprobs) > 0
    assert any(c.tuned.ended for c in sheet.canaries)
    assert sheet.stop_words == ("<|im_end|>",)


def test_what_was_exported_as_it_is_passes(known: Known, tmp_path: Path) -> None:
    proof = proof_of(known.exported(tmp_path / "x"), known.sheet)
    assert proof.state == "proved", proof
    assert states(proof) == dict.fromkeys(("tokens", "answers", "distance", "stop"), "passed")
    assert Proof.from_json(proof.to_json()) == proof


def other_template(folder: Path, known: Known) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(
        path.read_text().replace(
            "<|im_start|>assistant\\n' -}}\n{%- endif", "<|im_start|>assistant' -}}\n{%- endif"
        )
    )


def no_stop(folder: Path, known: Known) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 0}))


def early_stop(folder: Path, known: Known) -> None:
    canary = next(c for c in known.sheet.canaries if len(c.tuned.ids) > 2)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": [2, canary.tuned.ids[1]]}))


def the_base(folder: Path, known: Known) -> None:
    """An adapter that is loaded and does nothing."""
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({k: v * 0 if "lora_B" in k else v for k, v in load_file(path).items()}, path)


def another(folder: Path, known: Known) -> None:
    (folder / "adapter_model.safetensors").write_bytes(
        (known.other / "adapter_model.safetensors").read_bytes()
    )


def other_scale(folder: Path, known: Known) -> None:
    """The mistake of an engine that reads alpha as the scale."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 18}))


@pytest.mark.parametrize(
    ("tamper", "stage", "said"),
    [
        (other_template, "tokens", "chat_template.jinja"),
        (no_stop, "stop", "eos_token_id"),
        (early_stop, "stop", "eos_token_id"),
        (the_base, "answers", "the adapter is not applied"),
        (another, "answers", "another adapter answers to this name"),
        (other_scale, "distance", "another scale"),
    ],
)
def test_what_goes_wrong_in_the_field_is_caught_in_its_stage(
    tamper: Callable[[Path, Known], None], stage: str, said: str, known: Known, tmp_path: Path
) -> None:
    folder = known.exported(tmp_path / "x")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    tamper(folder, known)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} != before
    proof = proof_of(folder, known.sheet)
    assert proof.state == "failed"
    [failed] = [s for s in proof.stages if s.name == stage]
    assert failed.state == "failed" and said in (failed.fix or ""), proof
