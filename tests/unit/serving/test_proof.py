"""The proof of a folder: what is as it was trained passes, and each thing that goes wrong in the field is
seen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from tests.paths import TINY
from tests.unit.serving.conftest import ORDERS, Known, in_process

from orchestrate.errors import UnexpectedAnswer
from orchestrate.local.weights import worker
from orchestrate.profile import Profile
from orchestrate.serving.proof.folder import FolderPlace
from orchestrate.serving.proof.host import HostPlace
from orchestrate.serving.proof.observations import ObservedAnswer, PromptView
from orchestrate.serving.proof.url import UrlPlace
from orchestrate.serving.proof.verify import verify
from orchestrate.types import Canary, Fingerprint, JobHandle, Message, Probe, Proof, ProofStage, Reply, Said
from orchestrate.types.proof import badge

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

PAST_TOKENS = ("answers", "distance", "stop")


def proof_of(folder: Path, fingerprint: Fingerprint) -> Proof:
    place = FolderPlace(folder, fingerprint, str(TINY), model="tuned", ask=in_process)
    return verify(fingerprint, place, run_id="r")


def states(proof: Proof) -> dict[str, str]:
    return {stage.name: stage.state for stage in proof.stages}


def test_the_sheet_holds_what_tells_base_and_tuned_apart(known: Known) -> None:
    fingerprint = known.fingerprint
    assert {p.kind for p in fingerprint.probes} >= {
        "plain",
        "system",
        "multi-turn",
        "tools",
        "special tokens",
        "Unicode",
    }
    assert len(fingerprint.canaries) >= 4
    for canary in fingerprint.canaries:
        assert canary.tuned.text != canary.base.text
        assert len(canary.tuned.ids) == len(canary.tuned.logprobs) > 0
    assert any(c.tuned.ended for c in fingerprint.canaries)
    assert fingerprint.stop_words == ("<|im_end|>",)


def test_an_answer_that_differs_by_a_near_tie_identifies_no_model(known: Known, tmp_path: Path) -> None:
    weak = shutil.copytree(known.adapter, tmp_path / "weak")
    path = weak / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 3}))
    fingerprint = Fingerprint.from_dict(
        worker.fingerprint(str(TINY), str(weak), [str(ORDERS)], precision="fp32")
    )
    assert (
        fingerprint.canaries == ()
    )  # one answer differs, where tuned model and base hesitate between two tokens
    assert proof_of(known.exported(tmp_path / "served", weak), fingerprint).state == "in part"


class Replayed:
    """What a folder answered to all canaries, for any part of them."""

    model = engine = "x"

    def __init__(self, place: FolderPlace, fingerprint: Fingerprint) -> None:
        self.at, self.notes = place.at, list[str]()
        self._prompts = place.prompts(fingerprint.probes)
        answers = place.answers(fingerprint.canaries, base=False) or []
        self._answers = {c.ids: a for c, a in zip(fingerprint.canaries, answers, strict=True)}
        scored = (place.scores(fingerprint.canaries, base=base) or [] for base in (False, True))
        self._scores = [{c.ids: s for c, s in zip(fingerprint.canaries, one, strict=True)} for one in scored]

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]:
        return self._prompts

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer]:
        return [self._answers[c.ids] for c in canaries]

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float | None]]:
        return [self._scores[base][c.ids] for c in canaries]


def test_a_barely_trained_model_is_itself_in_16_bits_and_no_other_model_is(
    known: Known, tmp_path: Path
) -> None:
    """With a third of its strength, an adapter leaves many near-ties, which rounding decides. Each pair of
    canaries could have been the only ones of a fingerprint."""
    weak, other = (
        shutil.copytree(adapter, tmp_path / name)
        for name, adapter in (("weak", known.adapter), ("other", known.other))
    )
    for folder in (weak, other):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 8}))
    fingerprint = Fingerprint.from_dict(
        worker.fingerprint(str(TINY), str(weak), [str(ORDERS)], precision="fp32")
    )
    assert any(min(c.tuned.margins) < 0.125 for c in fingerprint.canaries)
    for adapter, right in ((weak, True), (other, False)):
        served = known.exported(tmp_path / f"served {right}", adapter)
        place = Replayed(
            FolderPlace(served, fingerprint, str(TINY), model="tuned", ask=in_process), fingerprint
        )
        for pair in combinations(fingerprint.canaries, 2):
            proof = verify(replace(fingerprint, canaries=pair), place, run_id="r")
            answers = states(proof)["answers"]
            assert answers != "failed" if right else proof.state == "failed", proof


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize(("margin", "state"), [(0.05, "proved"), (0.5, "failed")])
def test_an_answer_that_parts_at_a_near_tie_does_not_count(
    margin: float, state: str, ids: bool, known: Known
) -> None:
    """One of two answers has another first token than the trained model's, and the base's answer, which is
    shorter, begins as both do."""
    [one, two] = known.fingerprint.canaries[:2]
    said = Said(
        text="one two three",
        ids=(5, 6, 7),
        logprobs=(-0.5,) * 3,
        margins=(3.0, margin, 3.0),
        pieces=(b"one", b" two", b" three"),
        ended=False,
    )
    base = replace(said, text="one", ids=(5, 2), pieces=(b"one", b""), ended=True)
    canaries = (replace(one, tuned=said, base=base), replace(two, tuned=said, base=base))

    class Hesitates(Text):
        def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer]:
            return [
                ObservedAnswer(text=text, ended=False, ids=tokens if ids else None)
                for text, tokens in (("one two three", (5, 6, 7)), ("one, three", (5, 9, 7)))
            ]

    proof = verify(replace(known.fingerprint, canaries=canaries), Hesitates(str), run_id="r")
    assert states(proof)["answers"] == ("passed" if state == "proved" else "failed"), proof
    assert states(proof)["distance"] == "passed", "one of one, or one of two, may be a chance"


def test_what_was_exported_as_it_is_passes(known: Known, tmp_path: Path) -> None:
    proof = proof_of(known.exported(tmp_path / "x"), known.fingerprint)
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
    canary = next(c for c in known.fingerprint.canaries if len(c.tuned.ids) > 2)
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
        pytest.param(early_stop, "stop", "eos_token_id", marks=pytest.mark.slow),
        (the_base, "answers", "the adapter is not applied"),
        (
            another,
            "answers",
            "a different adapter under this name",
        ),
        (other_scale, "distance", "LoRA scale"),
    ],
)
def test_what_goes_wrong_in_the_field_is_caught_in_its_stage(
    tamper: Callable[[Path, Known], None], stage: str, said: str, known: Known, tmp_path: Path
) -> None:
    folder = known.exported(tmp_path / "x")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    tamper(folder, known)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} != before
    proof = proof_of(folder, known.fingerprint)
    assert proof.state == "failed"
    [failed] = [s for s in proof.stages if s.name == stage]
    assert failed.state == "failed" and said in (failed.fix or ""), proof


class OverTheWire:
    """A host that serves a folder: it tells text, how an answer ended, and how many tokens a prompt has."""

    host = "https://api.host.example"
    profile = Profile(kind="a-host", title="A host", provider="of.nobody:Host")

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def generate(
        self, job: JobHandle, prompts: Sequence[Sequence[Message]], *, base: bool = False, **way: Any
    ) -> list[Reply]:
        assert way["temperature" if "temperature" in way else "max_tokens"] in (0.0, 1)
        asked = [
            {"messages": [m.to_dict() for m in prompt], "max_tokens": way["max_tokens"]} for prompt in prompts
        ]
        served = {"folder": str(TINY if base else self._folder), "base": str(TINY), "rows": asked}
        [read] = in_process([{"task": "read", **served}])
        return [
            Reply(
                content=answer["text"],
                model="tuned",
                prompt_tokens=len(answer["ids"]),
                finish_reason="stop" if answer["ended"] else "length",
            )
            for answer in read["answers"]
        ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tamper", "stage"),
    [
        (None, None),
        (other_template, "tokens"),
        (no_stop, "stop"),
        (the_base, "answers"),
        (another, "answers"),
    ],
)
def test_at_a_host_that_tells_text_and_counts_each_is_caught_too(
    tamper: Callable[[Path, Known], None] | None, stage: str | None, known: Known, tmp_path: Path
) -> None:
    folder = known.exported(tmp_path / "x")
    if tamper is not None:
        tamper(folder, known)
    host: Any = OverTheWire(folder)
    place = HostPlace(host, JobHandle(provider="host", job_id="j"), "tuned")
    proof = verify(known.fingerprint, place, run_id="r")
    if stage is None:
        assert (proof.state, proof.badge) == ("in part", "partly proven (not checked: tokens)"), proof
        assert states(proof) | {"tokens": ""} == {"tokens": "", **dict.fromkeys(PAST_TOKENS, "passed")}
    else:
        assert proof.state == "failed" and states(proof)[stage] == "failed", proof
        assert stage in proof.badge and proof.badge.startswith("failed: ")


class Text:
    """A place that tells text alone."""

    at = model = engine = "x"

    def __init__(self, told: Callable[[str], str]) -> None:
        self.notes: list[str] = []
        self._told = told

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]:
        return [PromptView(ids=p.ids) for p in probes]

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer] | None:
        return [ObservedAnswer(text=self._told(c.tuned.text), ended=c.tuned.ended) for c in canaries]

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float]] | None:
        return None


@pytest.mark.parametrize(
    ("told", "state"),
    [
        (lambda text: text.replace("\ufffd", ""), "proved"),
        (lambda text: text.replace("\ufffd", "\ufffd\ufffd\ufffd"), "proved"),
        (lambda text: text.replace("\ufffd", "?"), "failed"),
        (lambda text: text.replace("\ufffd", "")[:-2], "failed"),
    ],
)
def test_bytes_that_are_no_text_are_told_in_other_ways_and_are_no_other_answer(
    told: Callable[[str], str], state: str, known: Known
) -> None:
    canaries = tuple(
        replace(
            c,
            tuned=replace(c.tuned, text=f"\ufffdone\ufffd{n} and two\ufffd", ended=True),
            base=replace(c.base, text=f"\ufffd{n} of others\ufffd"),
        )
        for n, c in enumerate(known.fingerprint.canaries)
    )
    proof = verify(replace(known.fingerprint, canaries=canaries), Text(told), run_id="r")
    assert proof.state == state, proof


class Numbers(Text):
    """A place whose log-probabilities of the tuned model lie `apart` from the trainer's."""

    def __init__(self, apart: float) -> None:
        super().__init__(lambda text: text)
        self._apart = apart

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float]] | None:
        known = [c.base if base else c.tuned for c in canaries]
        return [[value + (0 if base else self._apart) for value in said.logprobs] for said in known]


@pytest.mark.parametrize(
    ("precision", "tokens", "state"),
    [("bf16 on nf4", 3, "passed"), ("bfloat16", 300, "failed"), ("fp32", 3, "failed")],
)
def test_a_few_tokens_may_lie_a_step_of_bf16_apart(
    precision: str, tokens: int, state: str, known: Known
) -> None:
    said = Said(text="one", ids=(5,) * tokens, logprobs=(-0.5,) * tokens, pieces=(b"x",) * tokens, ended=True)
    canary = replace(known.fingerprint.canaries[0], tuned=said, base=replace(said, text="two"))
    fingerprint = replace(known.fingerprint, canaries=(canary,), precision=precision, noise=0.0)
    assert states(verify(fingerprint, Numbers(0.0292), run_id="r"))["distance"] == state


LISTED: dict[str, Any] = {"data": [{"id": "tuned", "owned_by": "vllm"}]}


@pytest.mark.parametrize(
    "listed",
    [LISTED, {"data": [{"id": "tuned", "owned_by": "llamacpp"}]}, {"data": [{"id": "tuned"}]}, {"data": [3]}],
)
@pytest.mark.parametrize(
    "body",
    [
        b"<h1>Please log in</h1>",
        b'{"error": {"message": "overloaded"}}',
        b"[]",
        b"{}",
        b"\xff",
        b'{"choices": [], "tokens": [1], "prompt": "x"}',
        b'{"choices": [null], "tokens": [1], "prompt": "x", "usage": 3}',
        b'{"choices": [{"message": "x"}], "tokens": ["a"], "prompt": "x", "usage": [1]}',
        b'{"choices": [{"message": {"content": "x"}, "logprobs": {"content": [3]}}], "tokens": [1]}',
        b'{"choices": [{"message": {}, "logprobs": {"content": [{"logprob": 1, "bytes": [300]}]}}],'
        b' "tokens": [1], "prompt": "x"}',
    ],
)
def test_a_200_without_an_answer_is_told_as_one_and_is_no_verdict(
    listed: dict[str, Any], body: bytes, known: Known
) -> None:
    """What stands between may say 200 and show a page of its own."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/models":
            return httpx.Response(200, json=listed, request=request)
        return httpx.Response(200, content=body, request=request)

    place = UrlPlace(
        "http://host.example", model="tuned", client=httpx.Client(transport=httpx.MockTransport(answer))
    )
    with pytest.raises(UnexpectedAnswer):
        verify(known.fingerprint, place, run_id="r")
    place.close()


def test_a_badge_tells_the_last_proof_of_each_place() -> None:
    def proof(at: str, minute: int, *failed: str) -> Proof:
        stages = tuple(
            ProofStage(name=name, state="failed" if name in failed else "passed", detail="")
            for name in ("tokens", *PAST_TOKENS)
        )
        when = datetime(2026, 11, 26, 9, minute, tzinfo=UTC)
        state: Any = "failed" if failed else "proved"
        return Proof(run_id="r", at=at, engine="e", model="m", state=state, stages=stages, created_at=when)

    assert badge([]) == "not proved"
    one, other = proof("A", 1, "tokens", "stop"), proof("B", 2)
    assert badge([one, other]) == "proved at B; failed: tokens, stop at A"
    assert badge([one, other, proof("A", 3)]) == "proved at A; proved at B"
