"""Where models come from: folders, GGUF files, and a hub that answers in its own ways."""

from __future__ import annotations

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.unit.local.sessions import TINY, make_session

from orchestrate.errors import UsageError
from orchestrate.local.model.files import gguf_files, models

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(
    path: Path,
    architecture: str = "llama",
    *,
    kind: str | None = None,
    vocabulary: bool = False,
    without: str = "\0",
) -> Path:
    """The tiny model as llama.cpp's converter writes it: queries and keys in its order of rotary halves.

    `kind`: quantisation of its matrices. `vocabulary`: with the tokenizer and the template inside.
    `without`: tensors whose names begin so.
    """
    import gguf

    shape = json.loads((TINY / "config.json").read_bytes())
    heads, kv_heads = shape["num_attention_heads"], shape["num_key_value_heads"]
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_vocab_size(shape["vocab_size"])
    for name, tensor in load_file(TINY / "model.safetensors").items():
        parts = name.removesuffix(".weight").split(".")
        if parts[1] == "layers":
            new = f"blk.{parts[2]}.{TENSORS['.'.join(parts[3:])]}.weight"
        else:
            new = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}[
                ".".join(parts)
            ] + ".weight"
        value = tensor.float().numpy()
        if parts[-1] in ("q_proj", "k_proj"):
            n = heads if parts[-1] == "q_proj" else kv_heads
            value = value.reshape(n, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        value = np.ascontiguousarray(value)
        if new.startswith(without):
            continue
        if kind is None or value.ndim == 1:
            writer.add_tensor(new, value)
        else:
            blocks = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(new, gguf.quants.quantize(value, blocks), raw_dtype=blocks)
    if vocabulary:
        add_vocabulary(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_vocabulary(writer: Any) -> None:
    import gguf

    tokenizer = json.loads((TINY / "tokenizer.json").read_bytes())
    ids: dict[str, int] = tokenizer["model"]["vocab"]
    special = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    tokens = {i: token for token, i in {**ids, **special}.items()}
    shape = json.loads((TINY / "config.json").read_bytes())
    names = [tokens.get(i, f"<unused{i}>") for i in range(shape["vocab_size"])]
    kinds = [gguf.TokenType.CONTROL if n in special else gguf.TokenType.NORMAL for n in names]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(special["<|im_end|>"])
    writer.add_pad_token_id(special["<|pad|>"])
    writer.add_chat_template((TINY / "chat_template.jinja").read_text(encoding="utf-8"))


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tokenizer's files and no weights yet; the cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, folder / name)
    return folder


@pytest.mark.slow
def test_a_gguf_is_the_model_that_it_was_made_from_and_trains(beside: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = write_gguf(beside / "tiny.gguf")
    folder = models.fetch(str(beside))
    assert models.fetch(str(file)).path == folder.path
    assert folder.fingerprint() == models.fetch(str(beside)).fingerprint()
    ids = torch.arange(3, 40)[None]
    logits: list[torch.Tensor] = []
    for source in (TINY, folder.path):
        model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits)
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    config = gguf_files.config(file)
    whole = json.loads((TINY / "config.json").read_bytes())
    assert all(config[name] == whole[name] for name in gguf_files.NAMES.values())
    assert gguf_files.parameters(file) == sum(
        t.numel() for t in load_file(TINY / "model.safetensors").values()
    )
    train = tmp_path / "train.jsonl"
    talk = [{"role": "user", "content": "Is 2 even?"}, {"role": "assistant", "content": "yes"}]
    train.write_text(f"{json.dumps({'messages': talk})}\n" * 16)
    losses: list[list[float]] = []
    for model_path, ref in ((str(TINY), "a"), (str(file), "b")):
        session = make_session(tmp_path, train, method={"type": "sft"}, ref=ref, model=model_path)
        session.loop.run()
        losses.append([p.values["train_loss"] for p in session.run.metrics()])
    assert losses[0] == losses[1]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least", "most"), [("Q8_0", 0.003, 0.01), ("Q4_0", 0.05, 0.12)])
def test_a_quantised_gguf_with_its_own_vocabulary_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, least: float, most: float
) -> None:
    """Rounding to steps of 1/127 or 1/8 of the greatest of 32 numbers costs about 0.6% or 9% of their
    length."""
    from transformers import AutoTokenizer

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "alone").mkdir()
    file = write_gguf(tmp_path / "alone" / "tiny.gguf", kind=kind, vocabulary=True)
    folder = models.fetch(str(file))
    found, wanted = load_file(folder.path / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        apart = ((found[name].float() - tensor.float()).norm() / tensor.float().norm()).item()
        assert apart == 0 if tensor.ndim == 1 else least < apart < most, (name, apart)
    tokenizer, own = (AutoTokenizer.from_pretrained(f, local_files_only=True) for f in (folder.path, TINY))
    chat = [{"role": "user", "content": "Is 12 even?\n"}, {"role": "assistant", "content": "München: ja"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == own.apply_chat_template(
        chat, tokenize=False
    )
    assert tokenizer.apply_chat_template(chat)["input_ids"] == own.apply_chat_template(chat)["input_ids"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|pad|>")
    assert max(tokenizer("<|endoftext|> said the user")["input_ids"]) < folder.config["vocab_size"]
    train = tmp_path / "train.jsonl"
    train.write_text(f"{json.dumps({'messages': chat})}\n" * 16)
    session = make_session(tmp_path, train, method={"type": "sft"}, model=str(file))
    session.loop.run()
    first, *_, last = (p.values["train_loss"] for p in session.run.metrics())
    assert last < first


def test_a_gguf_without_a_tokenizer_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"does not read bare\.gguf") as error:
        models.fetch(str(write_gguf(tmp_path / "bare.gguf")))
    assert "put its tokenizer.json beside" in str(error.value.fix)


def test_a_gguf_without_some_of_its_weights_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "part.gguf", vocabulary=True, without="blk.2.")
    with pytest.raises(
        UsageError, match=r"part\.gguf lacks 9 of its model's weights, such as model\.layers\.2"
    ):
        models.fetch(str(file))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_gguf_that_transformers_does_not_read_is_refused(beside: Path) -> None:
    write_gguf(beside / "odd.gguf", "mystery")
    with pytest.raises(UsageError, match=r"does not read odd\.gguf \(mystery\)"):
        models.fetch(str(beside))
    (beside / "odd.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(UsageError, match="is not a GGUF file"):
        models.fetch(str(beside / "odd.gguf"))
    assert not list((beside.parent / "cache").rglob("*.safetensors"))


def test_of_several_gguf_files_one_is_to_be_named_and_pickles_are_refused(beside: Path) -> None:
    (beside / "config.json").write_text("{}")
    (beside / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match=r"no \.safetensors weights \(only pytorch_model\.bin\)"):
        models.fetch(str(beside))
    for name in ("a.gguf", "b.gguf"):
        (beside / name).write_bytes(b"")
    with pytest.raises(UsageError, match=r"several GGUF files: a\.gguf, b\.gguf"):
        models.fetch(str(beside))


# -- the hub ------------------------------------------------------------------------------------------------


@pytest.fixture
def hub() -> Iterator[str]:
    """Answers by the repository's name: `gated`, `gone`, or a status."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.split("?")[0].split("/")[4]
            kinds = {
                "gated": (403, "GatedRepo"),
                "gone": (404, "RepoNotFound"),
                "private": (401, "RepoNotFound"),
            }
            status, code = kinds.get(name) or (int(name), None)
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import json, sys
from orchestrate.errors import OrchestrateError
from orchestrate.local.model.files import models
said = []
for name in sys.argv[1:]:
    try:
        models.fetch(name)
    except OrchestrateError as error:
        said.append([type(error).__name__, error.message, error.fix])
print(json.dumps(said))
"""


def fetched(names: list[str], home: Path, **environment: str) -> list[list[str]]:
    """What `fetch` says about each; in a process of its own, because the hub's address is read at import."""
    import os

    own = {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": "hf_test", **environment}
    out = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        env={**os.environ, **own},
        capture_output=True,
        text=True,
        check=False,
    )
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout.splitlines()[-1])


def test_each_refusal_of_the_hub_is_explained(hub: str, tmp_path: Path) -> None:
    names = ["gated", "gone", "private", "403", "400"]
    said = fetched([f"owner/{n}" for n in names], tmp_path, HF_ENDPOINT=hub)
    gated, gone, private, forbidden, bad = said
    assert gated[0] == "ConfigError" and "owner/gated is gated" in gated[1]
    assert "accept them at https://huggingface.co/owner/gated" in gated[2] and "HF_TOKEN" in gated[2]
    for answer in (gone, private):
        assert answer[0] == "UsageError" and "no model owner/" in answer[1] and "private" in answer[1]
    assert "refuses owner/403 (403)" in forbidden[1] and "may read" in forbidden[2]
    assert "answered with 400" in bad[1] and "try again later" in bad[2]


def test_without_a_network_it_says_how_to_fetch_the_model_before(tmp_path: Path) -> None:
    (offline,) = fetched(["owner/name"], tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in offline[1] and "hf download owner/name" in offline[2]
    (refused,) = fetched(["owner/name"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in refused[1] and "HF_HUB_OFFLINE" not in refused[1]
