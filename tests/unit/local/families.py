"""A tiny random model of each architecture, made from transformers' own configuration classes, with the tiny
chat model's tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.paths import TINY

VOCABULARY = 1280
USUAL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
HEADS = {"head_dim": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
DELTA = {
    **HEADS,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 16}
GPT = {
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 128,
    "n_positions": 1024,
    "vocab_size": VOCABULARY,
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
}
SMALL_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
LATENT = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}}

SEEING: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {
            **USUAL,
            **HEADS,
            "sliding_window": 16,
            "query_pre_attn_scalar": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        "vision_config": SMALL_VISION,
        "mm_tokens_per_image": 4,
        "image_token_id": 9,
        "boi_token_id": 10,
        "eoi_token_id": 11,
    },
    "llava": {
        "text_config": {"model_type": "llama", **USUAL},
        "vision_config": {"model_type": "clip_vision_model", **SMALL_VISION, "num_hidden_layers": 2},
        "image_token_id": 9,
    },
    "qwen2_vl": {
        "text_config": {**USUAL, **MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "patch_size": 14},
    },
}
"""Models with a vision tower, which are trained and asked in text here; sizes are those of their parts."""

FURTHER: dict[str, dict[str, Any]] = {
    "afmoe": {**HEADS, **EXPERTS, **SLIDING, "num_dense_layers": 1},
    "bitnet": {},
    "deepseek_v2": {**ROUTED, **LATENT, "n_group": 2},
    "deepseek_v32": {
        **ROUTED,
        **LATENT,
        "n_group": 2,
        "index_topk": 8,
        "index_n_heads": 8,
        "index_head_dim": 16,
    },
    "ernie4_5_moe": {
        **EXPERTS,
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "exaone_moe": {**HEADS, **EXPERTS, **SLIDING, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "gemma4_text": {
        **HEADS,
        **SLIDING,
        "initializer_range": 0.12,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": VOCABULARY,
        "num_kv_shared_layers": 0,
    },
    "glm": HEADS,
    "glm4_moe_lite": {**ROUTED, **LATENT},
    "glm_moe_dsa": {**ROUTED, **LATENT, "index_topk": 8, "index_n_heads": 32, "index_head_dim": 16},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "helium": HEADS,
    "hunyuan_v1_dense": HEADS,
    "hunyuan_v1_moe": {**HEADS, "num_experts": 4, "moe_topk": 2},
    "hy_v3": {**HEADS, **EXPERTS},
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "num_dense_layers": 1,
    },
    "minimax_m2": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 16},
    "ministral": {**HEADS, **SLIDING},
    "ministral3": HEADS,
    "nanochat": {},
    "olmo3": SLIDING,
    "qwen3_5_moe_text": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 64},
    "solar_open": {**HEADS, **EXPERTS, "n_routed_experts": 4},
    "vaultgemma": {**HEADS, **SLIDING, "query_pre_attn_scalar": 16},
    "youtu": LATENT,
}
"""Of which most cells are compared where the table is made."""
FAMILIES: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "bamba": {**MAMBA2, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    "bloom": {"n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "hidden_size": 64},
    "cohere": {},
    "cohere2": {**HEADS, "sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v3": {
        **EXPERTS,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
    },
    "ernie4_5": HEADS,
    "exaone4": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "falcon_h1": {**MAMBA2, **HEADS, "mamba_d_ssm": 128},
    "gemma2": {**HEADS, "sliding_window": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {
        **HEADS,
        "sliding_window": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma3n_text": {
        **HEADS,
        "intermediate_size": [128, 128, 128, 128],
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "laurel_rank": 8,
    },
    "glm4": HEADS,
    "glm4_moe": {**HEADS, **EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 1},
    "gpt2": GPT,
    "gpt_neox": {},
    "gpt_oss": {**HEADS, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    "granite": {"logits_scaling": 2.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    "granitemoehybrid": {
        **MAMBA2,
        "num_local_experts": 4,
        "shared_intermediate_size": 64,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {
        "num_experts": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_multiple_of": 32},
    "llama": {},
    "llama4_text": {
        **HEADS,
        "intermediate_size_mlp": 128,
        "num_local_experts": 4,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": 64,
        "no_rope_layers": [1, 0],
    },
    "mamba2": {
        "num_heads": 8,
        "head_dim": 16,
        "state_size": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "num_hidden_layers": 2,
    },
    "mistral": {"sliding_window": 16},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 1024, "vocab_size": VOCABULARY},
    "nemotron": {},
    "nemotron_h": {
        **HEADS,
        "layers_block_type": ["linear_attention", "mlp", "full_attention", "moe"],
        "ssm_state_size": 16,
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "chunk_size": 16,
        "n_routed_experts": 4,
        "moe_intermediate_size": 64,
        "moe_shared_expert_intermediate_size": 64,
    },
    "olmo2": {},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64, "dropout": 0.0},
    "phi3": {},
    "qwen2": {},
    "qwen3": HEADS,
    "qwen3_5_text": DELTA,
    "qwen3_moe": {**HEADS, **EXPERTS},
    "qwen3_next": {**DELTA, **EXPERTS, "shared_expert_intermediate_size": 64},
    "seed_oss": {**HEADS, "attention_dropout": 0.0, "residual_dropout": 0.0},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {"sliding_window": 16},
    **SEEING,
    **FURTHER,
}
"""`model_type` -> what its configuration has beside, or instead of, the usual sizes."""


def make(family: str, folder: Path, *, dtype: str = "float32", **more: Any) -> Path:
    """Writes the model, the weights random and in `dtype`, norms and biases too."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    kind: Any = AutoConfig
    usual, loader = ({}, AutoModelForImageTextToText) if family in SEEING else (USUAL, AutoModelForCausalLM)
    config = kind.for_model(family, **{**usual, **FAMILIES[family], **more})
    torch.manual_seed(0)
    model: Any = loader.from_config(config)
    chance = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.rand(parameter.shape, generator=chance), alpha=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / file, folder / file)
    return folder
