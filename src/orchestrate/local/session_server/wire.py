"""Tinker's message types: requests in JSON and protobuf, and results (package `tinker_public`, as in version
0.38 of the official client)."""

# protobuf classes are generated from descriptors at run time, so they have no type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from orchestrate.http.wire import HostError, parse

MOST_NUMBERS = 1 << 24
"""Maximum total number of values in a request's sparse tensors after expansion."""
LONGEST_TTL_S = 10 * 365 * 86400
_KINDS = {1: "<f4", 2: "<i8", 3: "<i4"}
_SCALARS = {"double": 1, "i64": 3, "i32": 5, "bool": 8, "str": 9, "bytes": 12, "u32": 13}
_MESSAGES: dict[str, tuple[str, ...]] = {
    "SparseCsr": ("values=1 bytes", "crow_indices=2 bytes", "col_indices=3 bytes"),
    "Tensor": ("dense=1 bytes ?", "sparse_csr=2 SparseCsr", "dtype=3 i32", "shape=4 i64 *"),
    "EncodedText": ("tokens=1 bytes",),
    "Other": (),
    "Chunk": ("encoded_text=1 EncodedText", "image=2 Other", "dmel=3 Other"),
    "InputsEntry": ("key=1 str", "value=2 Tensor"),
    "Datum": ("model_input=1 Chunk *", "loss_fn_inputs=2 InputsEntry *"),
    "NumberEntry": ("key=1 str", "value=2 double"),
    "LossConfigValue": ("number=1 double ?", "text=2 str ?"),
    "ConfigEntry": ("key=1 str", "value=2 LossConfigValue"),
    "ForwardBackwardRequest": (
        "model_id=1 str",
        "seq_id=2 i32",
        "data=3 Datum *",
        "loss_fn=4 str",
        "loss_fn_config=5 NumberEntry *",
        "forward_only=6 bool",
        "loss_fn_config_v2=7 ConfigEntry *",
    ),
    "BatchedTensor": ("data=1 bytes", "offsets=2 bytes", "dtype=3 i32", "trailing_shape=4 i64 *"),
    "FieldsEntry": ("key=1 str", "value=2 BatchedTensor"),
    "ArrayRecord": ("type_tag=1 str", "fields=2 FieldsEntry *", "num_datums=3 i64"),
    "ForwardBackwardOutput": (
        "loss_fn_output_type=1 str",
        "loss_fn_outputs=2 ArrayRecord *",
        "metrics=3 NumberEntry *",
    ),
    "TopkLogprobs": ("token_ids=1 bytes", "logprobs=2 bytes", "k=3 u32", "length=4 u32"),
    "SampledSequence": (
        "stop_reason=1 i32",
        "tokens=2 bytes",
        "logprobs=3 bytes ?",
        "topk_sampled_logprobs=4 TopkLogprobs",
    ),
    "SampleResponse": (
        "sequences=1 SampledSequence *",
        "prompt_logprobs=2 bytes ?",
        "topk_prompt_logprobs=3 TopkLogprobs",
    ),
}
"""Fields of each message as `name=number type`. `*` means repeated, `?` means optional. Maps are repeated
entries on the wire."""


@cache
def _classes() -> dict[str, Any]:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file: Any = descriptor_pb2.FileDescriptorProto(
        name="orchestrate_sessions.proto", package="s", syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields:
            field_name, _, rest = text.partition("=")
            number, kind, *mark = rest.split()
            field = message.field.add(name=field_name, number=int(number), label=3 if mark == ["*"] else 1)
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type, field.type_name = 11, f".s.{kind}"
            if mark == ["?"]:
                field.proto3_optional, field.oneof_index = True, len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field_name}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"s.{n}")) for n in _MESSAGES}


def message(name: str, **fields: Any) -> Any:
    return _classes()[name](**fields)


def read(name: str, data: bytes) -> Any:
    """Decode a protobuf message. Raises `HostError` 400 if it is invalid."""
    from google.protobuf.message import DecodeError

    try:
        return _classes()[name].FromString(data)
    except DecodeError as error:
        raise HostError(400, f"the body is not a valid {name}: {error}") from error


# Requests.


class TinkerBody(BaseModel):
    """A request body. Unknown fields are rejected if they could change the meaning of the request."""

    model_config = ConfigDict(extra="ignore", protected_namespaces=())


class LoraBody(TinkerBody):
    model_config = ConfigDict(extra="forbid")

    rank: int = Field(32, ge=1, le=4096)
    alpha: Literal[32] | None = Field(None, exclude=True)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateSessionBody(TinkerBody):
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None


class FinishBody(TinkerBody):
    reason: dict[str, Any] = {}


class CreateModelBody(TinkerBody):
    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraBody | None = None
    optimizer_config: dict[str, Any] = {"type": "adamw"}


class OfModelBody(TinkerBody):
    model_id: str


class AdamBody(TinkerBody):
    model_config = ConfigDict(extra="forbid")

    learning_rate: float = Field(1e-4, ge=0, allow_inf_nan=False)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.95, ge=0, lt=1)
    eps: float = Field(1e-12, ge=0, allow_inf_nan=False)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    grad_clip_norm: float = Field(0.0, allow_inf_nan=False)


class OptimStepBody(OfModelBody):
    seq_id: int
    adam_params: AdamBody | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveBody(OfModelBody):
    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    overwrite: bool = False
    ttl_seconds: int | None = Field(None, ge=1, le=LONGEST_TTL_S)


class LoadBody(TinkerBody):
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    path: str
    optimizer: bool


class CreateSamplerBody(TinkerBody):
    session_id: str
    sampling_session_seq_id: int
    model_path: str | None = None
    base_model: str | None = None


class TextChunk(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["encoded_text"] = "encoded_text"
    tokens: list[int]


class Prompt(BaseModel):
    chunks: list[TextChunk]


StopText = Annotated[str, Field(max_length=500)]


class DrawingBody(TinkerBody):
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63 - 1024)
    stop: StopText | Annotated[list[StopText] | list[int], Field(max_length=64)] | None = None
    temperature: float = Field(1.0, ge=0, allow_inf_nan=False)
    top_k: int = -1
    top_p: float = Field(1.0, gt=0, le=1)


class SampleBody(TinkerBody):
    sampling_session_id: str
    seq_id: int
    num_samples: int = Field(1, ge=1, le=1024)
    prompt: Prompt
    sampling_params: DrawingBody
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int = Field(0, ge=0, le=100)
    topk_sample_logprobs: int = Field(0, ge=0, le=100)
    target_prompt_logprobs: Any = None
    prompt_alt_tokens_k: int = 0
    prompt_logprobs_last_n: int | None = Field(None, ge=1)

    def unknown(self) -> str | None:
        """Return the name of a requested feature that this server does not support, or `None`."""
        wanted = {
            "target_prompt_logprobs": self.target_prompt_logprobs,
            "prompt_alt_tokens_k": self.prompt_alt_tokens_k,
        }
        return next((name for name, value in wanted.items() if value), None)


def forward_of(data: bytes) -> tuple[str, int, dict[str, Any]]:
    """Decode a forward request into (model id, request number, operation for the training process). If the
    rows are invalid, the operation is `{"refused": reason}`. Raises `HostError` 400 if the body cannot be
    decoded."""
    asked = read("ForwardBackwardRequest", data)
    config: dict[str, Any] = {entry.key: entry.value for entry in asked.loss_fn_config}
    for entry in asked.loss_fn_config_v2:
        value = entry.value
        config[entry.key] = value.text if value.HasField("text") else value.number
    try:
        rows, room = list[dict[str, Any]](), MOST_NUMBERS
        for datum in asked.data:
            tokens = _tokens(datum.model_input)
            inputs, room = _inputs(datum, len(tokens), room)
            rows.append({"tokens": tokens, "inputs": inputs})
    except HostError as error:
        return asked.model_id, asked.seq_id, {"refused": error.message}
    if not rows:
        return asked.model_id, asked.seq_id, {"refused": "data is empty: pass at least one row"}
    if bad := [name for name, value in config.items() if not _is_finite(value)]:
        return asked.model_id, asked.seq_id, {"refused": f"loss_fn_config.{bad[0]} is not a finite number"}
    forward = {"data": rows, "loss": asked.loss_fn, "config": config, "backward": not asked.forward_only}
    return asked.model_id, asked.seq_id, forward


class JsonTensor(BaseModel):
    """A tensor in a JSON request. Sparse tensors have row pointers and column indices."""

    model_config = ConfigDict(extra="forbid")

    data: list[int] | list[float]
    dtype: Literal["int64", "float32"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class JsonDatum(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model_input: Prompt
    loss_fn_inputs: dict[str, JsonTensor]


class JsonForwardInput(BaseModel):
    model_config = ConfigDict(extra="forbid")

    data: list[JsonDatum]
    loss_fn: str
    loss_fn_config: dict[str, float] | None = None


class JsonForwardBody(TinkerBody):
    model_id: str
    seq_id: int
    forward_input: JsonForwardInput | None = None
    forward_backward_input: JsonForwardInput | None = None


def forward_of_json(body: dict[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """Decode a forward request in JSON. Returns the same values as `forward_of`."""
    of, number = str(body.get("model_id")), body.get("seq_id")
    try:
        asked = parse(JsonForwardBody, body)
        given = asked.forward_input or asked.forward_backward_input
        if given is None or not given.data:
            raise HostError(400, "data is empty: pass at least one row")
        rows = [
            {
                "tokens": [id for chunk in datum.model_input.chunks for id in chunk.tokens],
                "inputs": {name: _json_tensor(name, one) for name, one in datum.loss_fn_inputs.items()},
            }
            for datum in given.data
        ]
        if bad := [n for n, value in (given.loss_fn_config or {}).items() if not _is_finite(value)]:
            raise HostError(400, f"loss_fn_config.{bad[0]} is not a finite number")
    except HostError as error:
        return of, number, {"refused": error.message}
    backward = asked.forward_backward_input is not None
    config = dict(given.loss_fn_config or {})
    forward = {"data": rows, "loss": given.loss_fn, "config": config, "backward": backward}
    return asked.model_id, asked.seq_id, forward


def _json_tensor(name: str, tensor: JsonTensor) -> dict[str, Any]:
    if tensor.sparse_crow_indices is not None or tensor.sparse_col_indices is not None:
        raise HostError(400, f"{name} is sparse: this server accepts sparse tensors only in protobuf")
    kind = "<i8" if tensor.dtype == "int64" else "<f4"
    shape = [len(tensor.data)] if tensor.shape is None else tensor.shape
    if math.prod(shape) != len(tensor.data):
        raise HostError(400, f"{name} has {len(tensor.data)} values, which does not match its shape {shape}")
    try:
        values = np.asarray(tensor.data, dtype=kind)
    except (OverflowError, ValueError) as error:
        raise HostError(400, f"{name} has a value that is no {tensor.dtype}: {error}") from error
    return {"data": values.tobytes(), "shape": shape, "kind": kind}


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _tokens(chunks: Sequence[Any]) -> list[int]:
    found: list[int] = []
    for chunk in chunks:
        if chunk.HasField("image") or chunk.HasField("dmel"):
            raise HostError(400, "this server accepts only text, no images or audio")
        found += np.frombuffer(_whole(chunk.encoded_text.tokens, 4), dtype="<i4").tolist()
    return found


def _whole(data: bytes, size: int) -> bytes:
    if len(data) % size:
        raise HostError(400, f"a tensor has {len(data)} bytes, which is not a multiple of {size}")
    return data


def _inputs(datum: Any, tokens: int, room: int) -> tuple[dict[str, Any], int]:
    """Decode the inputs. Also returns how many values sparse tensors may still have."""
    found: dict[str, Any] = {}
    for entry in datum.loss_fn_inputs:
        if entry.value.HasField("sparse_csr"):
            shape = list(entry.value.shape)
            room -= (
                math.prod(shape) if len(shape) == 2 and min(shape) >= 0 and shape[0] == tokens else room + 1
            )
            if room < 0:
                raise HostError(
                    400,
                    f"the sparse tensor {entry.key} is too large for {tokens} tokens: its shape is {shape}",
                )
        found[entry.key] = _tensor(entry.key, entry.value)
    return found, room


def _tensor(name: str, tensor: Any) -> dict[str, Any]:
    kind = _KINDS.get(tensor.dtype)
    if kind is None:
        raise HostError(400, f"{name} must be float32, int64 or int32")
    shape, size = list(tensor.shape), int(kind[2])
    if not tensor.HasField("sparse_csr"):
        return {"data": _whole(tensor.dense, size), "shape": shape, "kind": kind}
    csr = tensor.sparse_csr
    starts = np.frombuffer(_whole(csr.crow_indices, 8), dtype="<i8")
    columns = np.frombuffer(_whole(csr.col_indices, 8), dtype="<i8")
    values = np.frombuffer(_whole(csr.values, size), dtype=kind)
    counts = np.diff(starts)
    fits = len(starts) == shape[0] + 1 and len(columns) == len(values) == counts.sum() and (counts >= 0).all()
    if not fits or (len(columns) and (columns.min() < 0 or columns.max() >= shape[1])):
        raise HostError(400, f"the indices of the sparse tensor {name} do not fit its shape {shape}")
    found = np.zeros(shape, dtype=kind)
    found[np.repeat(np.arange(shape[0]), counts), columns] = values
    return {"data": found.tobytes(), "shape": shape, "kind": kind}


# Results. The training process sends `Values` as base64.


def forward_output(log_p: Sequence[tuple[bytes, Sequence[int]]], metrics: Mapping[str, float]) -> bytes:
    """Encode the result of a forward request. `log_p` contains each row's log-probabilities, as fp32 bytes,
    and their shape."""
    ends = np.cumsum([0, *(len(data) for data, _ in log_p)]).astype("<i8")
    tensor = message(
        "BatchedTensor",
        data=b"".join(data for data, _ in log_p),
        offsets=ends.tobytes(),
        dtype=1,
        trailing_shape=list(log_p[0][1][1:]),
    )
    record = message("ArrayRecord", num_datums=len(log_p))
    record.fields.add(key="logprobs", value=tensor)
    output = message("ForwardBackwardOutput", loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record])
    for name, value in metrics.items():
        output.metrics.add(key=name, value=value)
    return output.SerializeToString()


def sample_output(answers: Sequence[Mapping[str, Any]], prompt: Mapping[str, Any] | None) -> bytes:
    """Encode the result of sampling as protobuf. Each of the `answers` is {stop, tokens, logprobs} with an
    optional `tops`. `prompt` is {logprobs} with an optional `tops`. The prompt's values start at its second
    token, because the first token has no log-probability."""
    response = message("SampleResponse")
    for answer in answers:
        sequence = response.sequences.add(
            stop_reason=0 if answer["stop"] == "stop" else 1,
            tokens=np.array(answer["tokens"], dtype="<i4").tobytes(),
            logprobs=answer["logprobs"],
        )
        if "tops" in answer:
            sequence.topk_sampled_logprobs.CopyFrom(_tops(*answer["tops"]))
    if prompt is not None:
        response.prompt_logprobs = np.array([np.nan], dtype="<f4").tobytes() + prompt["logprobs"]
        if "tops" in prompt:
            ids, log_p = prompt["tops"]
            empty = (
                np.zeros((1, ids.shape[1]), dtype="<i4"),
                np.full((1, ids.shape[1]), -99999.0, dtype="<f4"),
            )
            tops = _tops(np.concatenate([empty[0], ids]), np.concatenate([empty[1], log_p]))
            response.topk_prompt_logprobs.CopyFrom(tops)
    return response.SerializeToString()


def _tops(ids: np.ndarray[Any, Any], log_p: np.ndarray[Any, Any]) -> Any:
    return message(
        "TopkLogprobs",
        token_ids=ids.astype("<i4").tobytes(),
        logprobs=log_p.astype("<f4").tobytes(),
        k=ids.shape[1],
        length=ids.shape[0],
    )
