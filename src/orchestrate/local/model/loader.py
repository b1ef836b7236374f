"""Load the model, adapter and tokenizer for training. Imports torch, so only workers import this module."""

# The type annotations of torch, transformers and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from orchestrate.data.tokens.chat_templates import CHATML, with_settings
from orchestrate.errors import RunFailed, UsageError
from orchestrate.local.job import AdapterSettings, LocalJob
from orchestrate.local.model import SettingChoice, choose, precision, weights
from orchestrate.local.model.adapters import fitting_keys
from orchestrate.local.model.adapters.starts import (
    AdapterInit,
    create_adapter,
    expert_parameters,
    make_room,
    rows_of,
    spare,
    targets_of,
    trained_rows,
)
from orchestrate.local.model.files import ModelFolder, Quantised, expanded
from orchestrate.local.model.loaded import Loaded, OutputHead
from orchestrate.local.model.shortcuts.accelerators import Unfit, load_unsloth, use_liger
from orchestrate.local.model.shortcuts.selection import turn_on
from orchestrate.local.model.weights import auto_class

METHOD = "orchestrate_nf4"
"""Name of Orchestrate's quantization method in transformers' registry."""


NARROW = 16
"""Number of inputs or outputs below which a linear layer is not quantized. Layers this small are usually
gates and routers, and some models access their weights directly."""


def nf4(dtype: torch.dtype, *, spread: bool = False) -> BitsAndBytesConfig:
    """Build the configuration for NF4 with double quantization of linear layers. Also quantizes experts that
    are stored in one tensor, if transformers supports custom implementations of them. With `spread`,
    quantized values are stored as `dtype` like the other weights, so that they can be sharded over
    processes."""
    return (_registered() or BitsAndBytesConfig)(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if spread else torch.uint8,
    )


def _registered() -> type[BitsAndBytesConfig] | None:
    """Return the configuration of Orchestrate's quantizer, or `None` if transformers lacks its parts."""
    try:
        from transformers.integrations import moe
        from transformers.integrations.bitsandbytes import Bnb4bitQuantize
        from transformers.quantizers import auto
        from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
        from transformers.quantizers.quantizers_utils import get_module_from_name
    except ImportError:
        return None
    from orchestrate.local.model import weights

    del moe
    if METHOD in auto.AUTO_QUANTIZATION_CONFIG_MAPPING:
        known: Any = auto.AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD]
        return known

    def of_experts(model: Any, name: str) -> Any:
        module, leaf = get_module_from_name(model, name)
        mine = hasattr(module, "_apply_gate") and hasattr(module, "has_gate")
        return module if mine and getattr(module, leaf).ndim == 3 else None

    class Quantise(Bnb4bitQuantize):
        def convert(self, input_dict: Any, *args: Any, model: Any = None, **kwargs: Any) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for name, value in input_dict.items():
                if (module := of_experts(model, name)) is None:
                    found |= super().convert({name: value}, *args, model=model, **kwargs)
                    continue
                weight = value[0] if isinstance(value, list) else value
                found[name] = weights.hold(module, name.rpartition(".")[2], weight)
            return found

    @auto.register_quantizer(METHOD)
    class Quantizer(Bnb4BitHfQuantizer):
        def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
            needs = super().param_needs_quantization(model, param_name, **kwargs)
            return needs or of_experts(model, param_name) is not None

        def get_modules_to_not_convert(self, model: Any, *args: Any, **kwargs: Any) -> list[str]:  # type: ignore[override]
            kept = super().get_modules_to_not_convert(model, *args, **kwargs)
            linear = ((n, m) for n, m in model.named_modules() if type(m) is torch.nn.Linear)
            return [*kept, *(n for n, m in linear if min(m.in_features, m.out_features) < NARROW)]

        def get_quantize_ops(self) -> Any:
            return Quantise(self)

        def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
            weights.use(model)
            return super()._process_model_after_weight_loading(model, **kwargs)  # pyright: ignore[reportPrivateUsage]

    @auto.register_quantization_config(METHOD)
    class Config(BitsAndBytesConfig):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.quant_method: Any = METHOD

    del Quantizer
    made: Any = Config
    return made


def saves_tied(inner: Any, adapter: AdapterSettings) -> bool:
    """Return whether the adapter fully trains an embedding table that input and output share. Both then
    continue to share the trained table."""
    config = inner.config.get_text_config()
    if not adapter.modules_to_save or not getattr(config, "tie_word_embeddings", False):
        return False
    tables = (inner.get_input_embeddings(), inner.get_output_embeddings())
    named = [name for name, module in inner.named_modules() if any(module is table for table in tables)]
    return any(name.endswith(tuple(adapter.modules_to_save)) for name in named)


def in_32_bits(model: Any) -> None:
    """Convert all trained weights to fp32, because most updates would be lost in 16 bits. Fully trained
    modules also compute in fp32, but return results in the model's own precision, except for the logits."""
    from peft.utils.other import ModulesToSaveWrapper

    dtype = model.get_base_model().dtype
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    if dtype == torch.float32:
        return
    head = model.get_base_model().get_output_embeddings()
    for wrapper in list(model.modules()):
        if isinstance(wrapper, ModulesToSaveWrapper):
            for module in wrapper.modules_to_save.values():
                module.register_forward_pre_hook(_widened)
                if wrapper is not head:
                    module.register_forward_hook(_narrowed(dtype))


def _widened(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)


def _narrowed(dtype: torch.dtype) -> Any:
    def hook(_: torch.nn.Module, __: Any, out: Any) -> Any:
        return out.to(dtype) if isinstance(out, Tensor) else out

    return hook


_ALONE = SettingChoice("plain", "the weights are sharded over several processes")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def pick_device(wanted: str | None) -> torch.device:
    device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            "device is cuda, but torch found no usable GPU",
            fix="set device: cpu, or install a CUDA build of torch",
        )
    return device


def load_tokenizer(
    folder: Path, template: str | None = None, settings: Mapping[str, Any] | None = None
) -> Any:
    """Load the tokenizer. `template` replaces its chat template, and `settings` are values for the template's
    variables. Raises `UsageError` for invalid files and for tokenizers that need custom code."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"could not read the tokenizer in {folder}: {str(error)[:500]}") from error
    if not tokenizer.is_fast:
        raise UsageError(f"{folder} has only a slow tokenizer, which does not report token offsets")
    if tokenizer.chat_template is None:
        tokenizer.chat_template = CHATML
    tokenizer.chat_template = with_settings(template or tokenizer.chat_template, settings)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    folder: Path,
    *,
    four_bit: bool,
    device: torch.device,
    dtype: torch.dtype | None = None,
    spread: bool = False,
) -> Any:
    """Load the base model. With `four_bit`, uses NF4 with double quantization unless the files are already
    quantized. `dtype` applies to matmuls and unquantized weights. By default, it depends on the device.
    Raises `QuantisedUnreadable` if the library that reads the files is missing."""
    stored = ModelFolder(folder).config
    held = Quantised.of(stored)
    if held is not None:
        held.require()
    dtype = dtype or DTYPES[precision(None, device.type).name]
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # Passing `quantization_config=None` would override the setting in the files.
    quantisation: dict[str, Any] = {}
    if four_bit and held is None:
        quantisation = {"quantization_config": nf4(dtype, spread=spread)}
    if held is not None and (kernel := held.kernel(device.type)):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        config.quantization_config = {**config.quantization_config, "backend": kernel}
        quantisation = {"config": config}
    options: dict[str, Any] = {
        "dtype": dtype,
        **quantisation,
        "device_map": _device_map(device, four_bit=four_bit and held is None, held=held),
        "use_safetensors": True,
        "local_files_only": True,
        # Set explicitly, because transformers otherwise asks on the terminal.
        "trust_remote_code": False,
    }
    if expanded(stored):
        model = weights.load(folder, device, **options)
    else:
        model = auto_class(folder).from_pretrained(folder, **options)
    keep_four_bit_weights(model)
    return model


def _device_map(device: torch.device, *, four_bit: bool, held: Quantised | None) -> dict[str, Any] | None:
    if device.type != "cpu":
        return {"": device}
    # Without a device, transformers loads bitsandbytes' weights onto a GPU if there is one.
    return {"": "cpu"} if four_bit or (held is not None and held.method == "bitsandbytes") else None


def keep_four_bit_weights(model: Any) -> None:
    """Stop bitsandbytes from repacking weights. Must be called before the first forward pass. On a CPU with
    AVX512-BF16, bitsandbytes repacks a weight in the first forward pass in evaluation mode and never restores
    it, so that later training is silently wrong or fails."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantize(model: Any) -> None:
    """Replace 4-bit layers with ordinary layers that hold the dequantized values. For inference only."""
    import bitsandbytes.functional as bnb

    for name, module in list(model.named_modules()):
        if type(module).__name__ == "Linear4bit":
            weight = bnb.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            plain.weight = torch.nn.Parameter(weight.to(model.dtype), requires_grad=False)
            plain.bias = module.bias
            model.set_submodule(name, plain)
    weights.spread_out(model, model.dtype)
    del model.hf_quantizer
    model.is_loaded_in_4bit = False
    model.config.quantization_config = None


def load(
    job: LocalJob,
    folder: ModelFolder,
    device: torch.device,
    tokens: int | None = None,
    *,
    init: AdapterInit | None = None,
    vocabulary: tuple[int, Sequence[int]] = (0, ()),
) -> Loaded:
    """Load the base model for a job, add a new adapter or the one in `continue_from`, and turn on the
    engine's optimizations. Seeds torch with the job's seed. `tokens` is the number of tokens in the entire
    run, which affects the choice of engine. `vocabulary` is (size of the tokenizer, ids of the tokens that
    were added for this job)."""
    kind = job.adapter.type
    sharded = job.hyper.sharded
    choice = _ALONE if sharded else choose(job.engine, device.type, tokens)
    products = _products(job, device)
    dtype = DTYPES[products.name]
    torch.manual_seed(job.seed)
    if sharded:  # no device has room for the whole
        _require_spreadable(folder)
        device = torch.device("cpu")
    without_adapter: tuple[str, ...] = ()
    if choice.name == "unsloth":
        model, inner = load_unsloth(job, str(folder.path), job.hyper.max_seq_length, dtype)
    elif kind == "full":
        model = inner = _all_weights(folder, device)
        if vocabulary[1]:
            make_room(inner, *vocabulary)
    else:
        inner = load_base(folder.path, four_bit=kind == "qlora", device=device, dtype=dtype, spread=sharded)
        _require_trainable(inner, folder)
        if vocabulary[1]:
            make_room(inner, *vocabulary)
        model, without_adapter = _adapted(inner, job, init, vocabulary[1])
    if choice.name == "liger":
        unfit = _unfit_for_liger(inner, job)
        if unfit is not None:
            del model, inner  # there may be no room for two
            plain = msgspec.structs.replace(job, engine="fused")
            loaded = load(plain, folder, device, tokens, init=init, vocabulary=vocabulary)
            loaded.choice = SettingChoice(loaded.choice.name, unfit)
            loaded.left_out["Liger"] = unfit
            return loaded
    if job.hyper.gradient_checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    if job.hyper.neftune_alpha:
        add_noise(inner.get_input_embeddings(), job.hyper.neftune_alpha)
    loaded = Loaded(model, inner, OutputHead.of(inner), device, choice=choice, precision=products)
    loaded.checkpointing = job.hyper.gradient_checkpointing
    loaded.without_adapter = without_adapter
    loaded.taken_out = init.kept if init and job.adapter.changes_base else None
    if kind == "qlora" and expert_parameters(inner) and not any(weights.held_of(inner)):
        loaded.left_out["experts in 4 bits"] = "the expert layers of this model family are not supported"
    turn_on(loaded, job)
    return loaded


def _products(job: LocalJob, device: torch.device) -> SettingChoice:
    """Return the job's precision, which was decided at submit, and the reason."""
    full = job.adapter.full
    settled = precision(job.precision, device.type, full=full)
    if job.precision is None or not job.spec or job.precision_requested:
        return settled
    usual = precision(None, device.type, full=full)
    return (
        usual
        if usual.name == settled.name
        else SettingChoice(settled.name, "chosen when the job was submitted")
    )


def _unfit_for_liger(inner: Any, job: LocalJob) -> str | None:
    """Return the reason why the model must be reloaded and trained without Liger, or `None` if Liger is in
    use."""
    try:
        use_liger(inner)
    except Unfit as error:
        if job.engine == "liger":
            raise
        return error.message
    return None


def _require_spreadable(folder: ModelFolder) -> None:
    if (held := Quantised.of(folder.config)) is not None:
        raise UsageError(
            f"the model's weights are stored in {held.description} and cannot be sharded across several GPUs",
            fix="use the 16-bit model. To quantize it to 4 bits here, set adapter: qlora",
        )


def _all_weights(folder: ModelFolder, device: torch.device) -> Any:
    """Load a model to train all of its weights. Raises `RunFailed` for a quantized one."""
    if (held := Quantised.of(folder.config)) is not None:
        raise RunFailed(
            f"the model's weights are stored in {held.description} and cannot be trained",
            fix="adapter: lora",
        )
    # With bf16 weights, most updates would be lost. On a GPU, matmuls still run in bf16.
    return load_base(folder.path, four_bit=False, device=device, dtype=torch.float32)


def _require_trainable(inner: Any, folder: ModelFolder) -> None:
    """Raise `RunFailed` for quantized bases that cannot be trained on."""
    held, quantiser = Quantised.of(folder.config), getattr(inner, "hf_quantizer", None)
    if held is not None and quantiser is not None and not quantiser.is_trainable:
        raise RunFailed(
            f"the model's weights are stored in {held.description}, and transformers cannot train an "
            "adapter on them",
            fix="use the 16-bit model. To quantize it to 4 bits here, set adapter: qlora",
        )


def add_noise(embeddings: torch.nn.Module, alpha: float) -> None:
    """Add NEFTune noise (Jain et al. 2023) during training: uniform noise of size alpha / sqrt(L d) on the
    input embeddings."""

    def noisy(module: torch.nn.Module, _: Any, out: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return out
        size = alpha / (out.shape[1] * out.shape[2]) ** 0.5
        return out + torch.empty_like(out).uniform_(-size, size)

    embeddings.register_forward_hook(noisy)


_UNFIT = (ValueError, KeyError, TypeError, AttributeError, re.error)
"""Errors that peft raises for an unusable configuration."""


def load_adapter(base: Any, folder: Path, *, trainable: bool = False, name: str = "default") -> Any:
    """Load an adapter from a folder onto the base model, under the name `name` in peft. If the adapter does
    not fit, raises `UsageError` and leaves the base model unchanged. Also raises `UsageError` if the adapter
    has no safetensors file, because peft would then load a pickle."""
    from peft import PeftModel

    if not (folder / "adapter_model.safetensors").is_file():
        raise UsageError(
            f"{folder} has no adapter_model.safetensors. Pickled weights are not loaded because they can run "
            "code"
        )
    make_room(base, rows_of(folder))
    try:
        model = PeftModel.from_pretrained(
            base, str(folder), adapter_name=name, is_trainable=trainable, ignore_mismatched_sizes=True
        )
    except _UNFIT as error:
        raise UsageError(
            f"the adapter in {folder} does not fit its base model: {str(error)[:500]}"
        ) from error
    try:
        _require_fit(model, folder, name)
    except UsageError:
        model.unload()
        raise
    if any(weights.held_of(base)):
        weights.adapt(model)
    spare(model)
    return model


def add_adapter(model: Any, folder: Path, name: str) -> None:
    """Add another adapter to a model that already has one. If the adapter does not fit, raises `UsageError`
    and leaves the model unchanged."""
    try:
        model.load_adapter(str(folder), adapter_name=name, ignore_mismatched_sizes=True)
    except _UNFIT as error:
        if name in model.peft_config:
            model.delete_adapter(name)
        raise UsageError(
            f"the adapter in {folder} does not fit its base model: {str(error)[:500]}"
        ) from error
    try:
        _require_fit(model, folder, name)
    except UsageError:
        model.delete_adapter(name)
        raise


def _require_fit(model: Any, folder: Path, name: str) -> None:
    """Check that all weights fit. peft ignores weights without a place in the model, and leaves missing
    weights at their random values."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    given = load_file(folder / "adapter_model.safetensors")
    found = set_peft_model_state_dict(model, given, adapter_name=name, ignore_mismatched_sizes=True)
    lacking = [key for key in found.missing_keys if "lora_" in key and f".{name}" in key]
    homeless = [key for key in found.unexpected_keys if "lora_" in key]
    if lacking or homeless:
        which = (
            f"the adapter lacks a tensor of the right shape for {lacking[0]}"
            if lacking
            else f"the model lacks a module for {homeless[0]}"
        )
        more = f", and {len(lacking) + len(homeless) - 1} others" if len(lacking) + len(homeless) > 1 else ""
        base = model.peft_config[name].base_model_name_or_path
        raise UsageError(
            f"the adapter in {folder} does not fit its base model: {which}{more}",
            fix=f"load it on the base model that its adapter_config.json names: {base}",
        )


def _adapted(
    inner: Any, job: LocalJob, init: AdapterInit | None, added: Sequence[int]
) -> tuple[Any, tuple[str, ...]]:
    """Return the peft model, and the modules without an adapter, with the reason."""
    from peft import EvaConfig, LoraConfig

    for parameter in inner.parameters():
        parameter.requires_grad_(False)
    if job.continue_from:
        model = load_adapter(inner, Path(job.continue_from), trainable=True)
        in_32_bits(model)
        return model, ()
    adapter = job.adapter
    start = adapter.init_lora_weights
    tokens = trained_rows(inner, added, adapter)

    def config_of(modules: Sequence[str], parameters: Sequence[str] = ()) -> Any:
        return LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.lora_alpha,  # pyright: ignore[reportArgumentType]  peft takes any number
            lora_dropout=adapter.dropout or 0.0,
            target_modules=list(modules),
            target_parameters=list(parameters) or None,
            use_dora=adapter.dora,
            use_rslora=adapter.rslora,
            rank_pattern=fitting_keys(adapter.rank_pattern, modules),
            alpha_pattern=fitting_keys(adapter.alpha_pattern, modules),
            modules_to_save=list(adapter.modules_to_save or ()) or None,
            trainable_token_indices=tokens,
            ensure_weight_tying=saves_tied(inner, adapter),
            init_lora_weights=True if start in (None, "loftq") else start,  # pyright: ignore[reportArgumentType]
            eva_config=EvaConfig() if start == "eva" else None,
            task_type="CAUSAL_LM",
        )

    targets = targets_of(inner, adapter, config_of)
    try:
        model = create_adapter(inner, config_of(targets.modules, targets.parameters), adapter, init)
        spare(model)
        in_32_bits(model)
        return model, targets.left_out
    except (ValueError, TypeError) as error:
        raise RunFailed(
            f"the adapter does not fit the model: {error}", fix="check the adapter settings in the spec"
        ) from error
