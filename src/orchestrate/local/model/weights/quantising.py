"""A base whose linear layers and experts are put into 4 bits while it is read, one weight after the other."""

# torch, transformers and bitsandbytes describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig

METHOD = "orchestrate_nf4"
"""Name of the method in transformers' registry."""


NARROW = 16
"""Linear layers of fewer inputs or outputs stay as they are: they are small, weigh or choose between a few
things, and some models read their weights themselves."""


def nf4(dtype: torch.dtype, *, spread: bool = False) -> BitsAndBytesConfig:
    """NF4 with double quantisation, of linear layers, and of experts where transformers has them in one
    tensor and lets us compute them. `spread`: stored as numbers of `dtype`, as the other weights are, as they
    go from process to process."""
    return (_registered() or BitsAndBytesConfig)(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype if spread else torch.uint8,
    )


def _registered() -> type[BitsAndBytesConfig] | None:
    """The configuration by which transformers finds our quantiser; `None` where it knows no such experts."""
    try:
        from transformers.integrations import moe
        from transformers.integrations.bitsandbytes import Bnb4bitQuantize
        from transformers.quantizers import auto
        from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
        from transformers.quantizers.quantizers_utils import get_module_from_name
    except ImportError:
        return None
    from orchestrate.local.model.weights import experts

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
                found[name] = experts.hold(module, name.rpartition(".")[2], weight)
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
            experts.use(model)
            return super()._process_model_after_weight_loading(model, **kwargs)  # pyright: ignore[reportPrivateUsage]

    @auto.register_quantization_config(METHOD)
    class Config(BitsAndBytesConfig):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.quant_method: Any = METHOD

    del Quantizer
    made: Any = Config
    return made
