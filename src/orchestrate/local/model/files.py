"""Locate a model's files and inspect them. Torch-free."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.core.tensors import header_bytes, tensors
from orchestrate.errors import ConfigError, SetupError, UsageError
from orchestrate.local.space import FULL
from orchestrate.profile import this_machine
from orchestrate.types import decoding

# Base models with quantized linear layers: the library that reads them, and their size. Torch-free.


PACKAGES: Mapping[str, tuple[str, ...]] = {
    "bitsandbytes": ("bitsandbytes",),
    "gptq": ("optimum", "gptqmodel"),
    "awq": ("gptqmodel",),
    "compressed-tensors": ("compressed_tensors",),
    "auto-round": ("auto_round",),
}
"""The packages that transformers needs for each quantization method."""
_EXPANDED: Mapping[str, float] = {"mxfp4": 16 / 4.25, "fp8": 2.0}
"""Quantization formats that are expanded to 16 bits on loading, as {format: factor by which the weights
grow}. See `local.model.weights`."""
_CPU_KERNELS = {"gptq": "gptq_torch", "awq": "torch_awq"}
"""The gptqmodel kernels to use on a CPU. The default kernel repacks the weights at the first forward pass and
then computes no gradients for earlier layers."""


NF4 = "NF4 (4 bits)"


def expanded(config: Mapping[str, Any]) -> str | None:
    """Return the model's quantization format if its weights are expanded on loading, otherwise `None`.
    `config` is the parsed config.json."""
    held, method = _named(config)
    return method.upper() if held and method in _EXPANDED else None


def expansion(config: Mapping[str, Any]) -> float:
    """Return the factor by which the weights grow when they are loaded. It is 1 for formats that are not
    expanded."""
    held, method = _named(config)
    return _EXPANDED.get(method, 1.0) if held else 1.0


def _named(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """Return the quantization section of a config.json and the method's name."""
    held = _mapping(config.get("quantization_config"))
    held = held or _mapping(_mapping(config.get("text_config")).get("quantization_config"))
    return held, str(held.get("quant_method") or "bitsandbytes")


def _mapping(found: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", found) if isinstance(found, Mapping) else {}


class QuantisedUnreadable(SetupError):
    """Raised if the library needed to read the base model is not installed. `fix` is the command that
    installs the library."""


@dataclass(frozen=True)
class Quantised:
    """The in-memory format of a quantized base model. `bits` and `bytes` are `None` if only the method's name
    is known."""

    method: str
    bits: int | None
    bytes: float | None
    """Bytes per parameter of the linear layers, including scales."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Quantised | None:
        """Read the quantization format from the contents of config.json. Returns `None` for models that are
        loaded in 16 or 32 bits."""
        held, method = _named(config)
        if not held or method in _EXPANDED:
            return None
        if method == "bitsandbytes":
            if held.get("load_in_8bit"):
                return cls(method, 8, 1.0)
            scales = 1 / 64 + 4 / (64 * 256) if held.get("bnb_4bit_use_double_quant") else 4 / 64
            return cls(method, 4, 0.5 + scales)
        bits = held.get("bits") or held.get("w_bit")
        if method not in PACKAGES or not isinstance(bits, int):
            return cls(method, None, None)
        group = held.get("group_size") or held.get("q_group_size") or 128
        # Each group has a 16-bit scale and a zero point with as many bits as a weight.
        grouped = (2 + bits / 8) / group if isinstance(group, int) and group > 0 else 0.0
        return cls(method, bits, bits / 8 + grouped)

    def kernel(self, device: str) -> str | None:
        """Return the name of the gptqmodel kernel to request on `device` so that training can compute
        gradients. Returns `None` for quantization methods whose default kernel already computes them."""
        if self.method not in _CPU_KERNELS:
            return None
        return _CPU_KERNELS[self.method] if device == "cpu" else "auto_trainable"

    @property
    def description(self) -> str:
        return f"{self.bits}-bit {self.method} format" if self.bits else f"a quantized format ({self.method})"

    def require(self, find: Callable[[str], object | None] = find_spec) -> None:
        """Raise `QuantisedUnreadable` if a required package is missing. Doesn't import packages. `find`
        returns `None` for a package that is not installed."""
        missing = [name for name in PACKAGES.get(self.method, ()) if find(name) is None]
        if missing:
            raise QuantisedUnreadable(
                f"the model's weights are stored in {self.description}, and the package to read them is "
                "not installed",
                fix=f"pip install {' '.join(missing)}",
            )


def weights_in(config: Mapping[str, Any], *, four_bit: bool, dtype: str) -> str:
    """Describe the precision in which `load_base` loads a base model with this config.json."""
    if held := Quantised.of(config):
        return held.method if held.bits is None else f"{held.method} ({held.bits} bits)"
    return NF4 if four_bit else dtype


# Locate a model's files. Torch-free, because the backend and the checks use it too.


_HUB_S = 10.0
WHOLE_HASH_LIMIT = 4 << 30
"""Total size in bytes above which only the headers and sizes of the weight files are hashed, because hashing
140 GB would take minutes."""


@dataclass(frozen=True)
class ModelFolder:
    """A trainable model on disk: configuration, safetensors, tokenizer."""

    path: Path
    hub_id: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        return msgspec.json.decode((self.path / "config.json").read_bytes())

    @property
    def context(self) -> int | None:
        """Context length in tokens, for prompt and answer together. `None` if the configuration does not
        specify it."""
        config = self.config
        for given in (config, config.get("text_config") or {}):
            for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
                if isinstance(limit := given.get(name), int) and limit > 0:
                    return limit
        return None

    @property
    def weights(self) -> list[Path]:
        return sorted(self.path.glob("*.safetensors"))

    @property
    def expanded_bytes(self) -> float:
        """Total size of the weights in bytes. Weights in MXFP4 or FP8 are counted at their expanded size of
        16 bits."""
        return sum(p.stat().st_size for p in self.weights) * expansion(self.config)

    def modules(self) -> list[str]:
        """List the names of the modules that have a weight matrix. Reads only the headers of the weight
        files, and skips unreadable files."""
        names: set[str] = set()
        for path in self.weights:
            try:
                found = tensors(path)
            except ValueError:
                continue
            names.update(k.removesuffix(".weight") for k, t in found.items() if len(t.shape) == 2)
        return sorted(names)

    def precisions(self) -> dict[str, str]:
        """Map each tensor name in the files to its data type, as safetensors names it (`BF16`). Unreadable
        files are skipped."""
        found: dict[str, str] = {}
        for path in self.weights:
            try:
                found.update({name: tensor.dtype for name, tensor in tensors(path).items()})
            except ValueError:
                continue
        return found

    def fingerprint(self) -> str:
        """Compute a hash of the configuration and the weights: `sha256:...`, or `headers:...` if the weights
        are so large that only their headers are hashed."""
        digest = hashlib.sha256((self.path / "config.json").read_bytes())
        size = sum(p.stat().st_size for p in self.weights)
        for path in self.weights:
            digest.update(path.name.encode())
            if size <= WHOLE_HASH_LIMIT:
                with path.open("rb") as file:
                    while block := file.read(1 << 22):
                        digest.update(block)
            else:
                digest.update(header_bytes(path))
                digest.update(str(path.stat().st_size).encode())
        return f"{'sha256' if size <= WHOLE_HASH_LIMIT else 'headers'}:{digest.hexdigest()}"


def local_folder(model: str) -> Path | None:
    """Return the absolute path of this folder, or `None` if it does not exist."""
    path = _at(model)
    return path.resolve() if _is_dir(path) else None


def _at(model: str) -> Path:
    try:
        return Path(model).expanduser()
    except RuntimeError:  # of a user that is not known here
        return Path(model)


def _is_dir(path: Path) -> bool:
    """Return whether the path is a folder. Names that are too long are not, because they may come from an
    untrusted file."""
    with suppress(OSError):
        return path.is_dir()
    return False


def config_of(model: str) -> dict[str, Any] | None:
    """Read the config.json of a folder or of a cached Hub model. The weights need not be present. Raises
    `UsageError` for GGUF."""
    _no_gguf(model)
    folder = local_folder(model)
    path = folder / "config.json" if folder else _cached_config(model)
    try:
        return None if path is None else msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError):
        return None


def _cached_config(model: str) -> Path | None:
    """Return the config.json of a Hub model in the Hub's cache, in the folder of its commit."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def commit_of(model: str) -> str | None:
    """Return the commit of a Hub model that `fetch` would load: the Hub's newest one, or the one on this
    machine if the Hub can't be reached. Returns `None` if neither is known."""
    with suppress(Exception):  # of the Hub, or of the connection to it: `fetch` reports them
        import huggingface_hub

        api: Any = huggingface_hub.HfApi()
        if not offline() and (newest := api.model_info(model, timeout=_HUB_S).sha):
            return str(newest)
    found = _cached_config(model)
    return None if found is None else found.parent.name


def source(name: str) -> str:
    """Resolve a catalog name, folder or Hub id to a folder or Hub id. Raises `SpecError` for any other
    name."""
    if folder := local_folder(name):
        return str(folder)
    from orchestrate import catalog

    resolved = catalog.resolve(name, this_machine().kind)
    return str(local_folder(resolved.id) or resolved.id)


def _no_gguf(model: str) -> None:
    """Raise `UsageError` for a GGUF file, a folder with only GGUF files, or a Hub repository named after
    GGUF."""
    path = _at(model)
    named = path.suffix.lower() == ".gguf" or (path.name.lower().endswith("-gguf") and not _is_dir(path))
    if named or (_is_dir(path) and any(path.glob("*.gguf")) and not any(path.glob("*.safetensors"))):
        raise UsageError(
            f"{model} is in GGUF format, which can be served but not trained. Train the model's "
            f"safetensors version instead",
            fix="set model to the Hub id of the unquantized model, such as Qwen/Qwen3-8B. To export the "
            "tuned model to GGUF: "
            "orchestrate export RUN DIR --to gguf",
        )


def open_folder(path: Path, hub_id: str | None = None) -> ModelFolder:
    """Open a model folder. Raises `UsageError` if the folder is not a trainable model."""
    try:
        msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UsageError(f"{path} is not a model folder: it has no config.json") from error
    except msgspec.MsgspecError as error:
        raise UsageError(f"could not parse {path / 'config.json'}: {error}") from error
    if not list(path.glob("*.safetensors")):
        other = [p.name for pattern in ("*.bin", "*.pt") for p in path.glob(pattern)]
        raise UsageError(
            f"{path} has no .safetensors weights"
            + (f" (only {', '.join(sorted(other)[:3])})" if other else ""),
            fix=(
                "convert them with model.save_pretrained(folder, safe_serialization=True). Pickled weights "
                "are not loaded because they can run code"
            ),
        )
    if missing := _missing_shards(path):
        raise UsageError(
            f"{path} is incomplete. Files listed in its index are missing or empty: {', '.join(missing[:3])}",
            fix="download or copy the folder again",
        )
    return ModelFolder(path, hub_id)


def here(model: str) -> ModelFolder | None:
    """Open the model folder at this path, or return `None` for a Hub id. Raises `UsageError` if the name is
    neither, or if the model cannot be trained."""
    _no_gguf(model)
    if folder := local_folder(model):
        return open_folder(folder)
    if model.startswith(("/", "./", "../", "~")) or model.count("/") != 1:
        raise UsageError(
            f"no model folder at {model}, and it is not a Hugging Face Hub id (owner/name)",
            fix=f"orchestrate models --provider {this_machine().kind}",
        )
    return None


def to_download(model: str) -> bool:
    """Return whether a Hub model still has to be downloaded, entirely or in part. Raises the same errors as
    `here`."""
    if here(model) is not None:
        return False
    try:
        import huggingface_hub
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
    except ImportError:
        return True
    hub: Any = huggingface_hub
    try:
        open_folder(Path(hub.snapshot_download(model, local_files_only=True)), hub_id=model)
    except (LocalEntryNotFoundError, HFValidationError, UsageError, OSError):
        return True
    return False


def offline() -> str:
    """Return the reason why models cannot be downloaded, as a suffix for messages: a space and the reason in
    parentheses. Returns an empty string if downloads are allowed."""
    return " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""


def _missing_shards(path: Path) -> list[str]:
    """List the files that the index names and that do not exist."""
    try:
        index = decoding.decode((path / "model.safetensors.index.json").read_bytes(), type=_Index)
    except OSError:
        return []
    except msgspec.MsgspecError as error:
        raise UsageError(
            f"could not parse the weight index {path / 'model.safetensors.index.json'}: {error}"
        ) from error
    files = sorted(set(index.weight_map.values()))
    return [name for name in files if not (path / name).is_file() or not (path / name).stat().st_size]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


def fetch(model: str) -> ModelFolder:
    """Return the model's folder, downloading it from the Hub if necessary. Called by workers. Raises
    `UsageError` for a name that is neither a folder nor a Hub id, and `ConfigError` if the Hub cannot be
    reached or denies access."""
    return here(model) or open_folder(Path(_download(model)), hub_id=model)


def _download(model: str) -> str:
    import huggingface_hub
    from huggingface_hub import errors

    hub: Any = huggingface_hub
    try:
        return hub.snapshot_download(
            model, allow_patterns=["*.json", "*.safetensors", "*.jinja", "tokenizer*", "*.model"]
        )
    except errors.GatedRepoError as error:
        raise ConfigError(
            f"{model} is gated: its owner requires you to accept terms first",
            fix=f"accept them at https://huggingface.co/{model}, then run  hf auth login  or export "
            "HF_TOKEN=...",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UsageError(
            f"the Hub has no model {model}, or the model is private",
            fix="check the name. For a private model, export HF_TOKEN=...",
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise _unreachable(model) from error
    except OSError as error:
        status = _status(error)
        if status in (401, 403):
            raise ConfigError(
                f"the Hub denied access to {model} ({status}): the token is invalid or has no "
                "permission to read it",
                fix="run  hf auth login  or export HF_TOKEN=... with a token that may read this model",
            ) from error
        if status is not None:
            raise ConfigError(
                f"{model} is not on this machine, and the Hub returned {status}",
                fix="try again later. The partial download is kept",
            ) from error
        if error.errno in (*FULL, errno.EACCES, errno.EROFS):
            place = f" ({error.filename})" if error.filename else ""
            raise ConfigError(
                f"could not store {model}: {error.strerror}{place}",
                fix="free up some disk space, or set HF_HOME to a folder with more space. Downloads are kept",
            ) from error
        raise _unreachable(model) from error
    except Exception as error:
        # The class comes from httpx or httpx2, depending on the version of huggingface_hub, which has already
        # retried.
        if "TransportError" not in {kind.__name__ for kind in type(error).__mro__}:
            raise
        raise ConfigError(
            f"lost the connection while downloading {model}: {error}",
            fix="try again. Files that are already complete are not downloaded again",
        ) from error


def _unreachable(model: str) -> ConfigError:
    return ConfigError(
        f"{model} is not on this machine, and the Hub cannot be reached{offline()}",
        fix=f"connect to the internet and run  hf download {model} , or give the path of a model folder",
    )


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status of the response that caused the error, possibly several causes away."""
    while error is not None:
        response = getattr(error, "response", None)
        if (code := getattr(response, "status_code", None)) is not None:
            return int(code)
        error = error.__cause__ or error.__context__
    return None
