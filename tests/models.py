"""Tiny random models, one for each way in which decoders differ: a config by key, and a checkpoint folder made from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

COMMON = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEAD16 = {"head_dim": 16}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
ALTERNATE = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}


def _rope(**fields: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **fields}}


MODELS: dict[str, dict[str, Any]] = {
    "llama": HEAD16,
    "llama@llama3": {
        **HEAD16,
        **_rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64),
    },
    "llama@yarn": {**HEAD16, **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64)},
    "mistral": {**HEAD16, "sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": HEAD16,
    "gemma2": {**HEAD16, **ALTERNATE, "query_pre_attn_scalar": 32},
    "gemma3_text": {**HEAD16, **ALTERNATE, "query_pre_attn_scalar": 32},
    "phi3": {"sliding_window": None, "original_max_position_embeddings": 64, "partial_rotary_factor": 0.5},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": None},
    "gpt_neox": {"rotary_pct": 0.25},
    "olmo2": {},
    "granite": {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "attention_multiplier": 0.0625, "logits_scaling": 8.0},
    "starcoder2": {"sliding_window": 8},
    "cohere2": {**HEAD16, **ALTERNATE},
    "gptj": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8},
    "bloom": {"n_layer": 2, "n_head": 4, "hidden_size": 64},
    "gpt_neo": {
        "num_layers": 2,
        "num_heads": 4,
        "hidden_size": 64,
        "attention_types": [[["global", "local"], 1]],
        "window_size": 8,
    },
    "trocr": {"d_model": 64, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 96},
    "mamba": {"state_size": 8, "expand": 2, "time_step_rank": 8},
    "mamba2": {"state_size": 16, "expand": 2, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16},
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "mixtral": EXPERTS,
    "qwen3_moe": {
        **HEAD16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "decoder_sparse_step": 1,
        "norm_topk_prob": True,
    },
    "qwen3_next": {
        **HEAD16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "shared_expert_intermediate_size": 48,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 16,
    },
    "gpt_oss": {
        **HEAD16,
        **EXPERTS,
        **ALTERNATE,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=32.0, beta_slow=1.0),
    },
    "doge": {"num_experts": 16},
    "inkling_text": {
        **HEAD16,
        "layer_types": ["hybrid_sliding", "hybrid"],
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "sliding_window_size": 8,
        "d_rel": 8,
        "rel_extent": 16,
        "moe_intermediate_size": 48,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
    },
    "glm_moe_dsa": {
        "num_hidden_layers": 3,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 24,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 48,
        "n_group": 2,
        "topk_group": 1,
        "indexer_types": ["full", "shared", "full"],
        "index_topk": 8,
        "index_n_heads": 16,
        "index_head_dim": 16,
    },
}
DENSE = tuple(k for k in MODELS if k not in ("mixtral", "qwen3_moe", "qwen3_next", "gpt_oss", "glm_moe_dsa", "inkling_text"))
_NAMED_OTHERWISE = (
    "hidden_size",
    "intermediate_size",
    "num_key_value_heads",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)


def make_config(key: str, **changes: Any) -> Any:
    """The config of a key, with fields changed."""
    from transformers import AutoConfig

    kind = key.partition("@")[0]
    fields = {**COMMON, **MODELS[key], **changes}
    if kind in ("gpt2", "gptj", "bloom", "gpt_neo"):
        fields = {k: v for k, v in fields.items() if k not in _NAMED_OTHERWISE or k in MODELS[key]}
    return AutoConfig.for_model(kind, **fields)


def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights of the size that trained ones have; norms and biases near what they start from, but not equal to it."""
    generator = torch.Generator().manual_seed(seed)
    saved = set(model.state_dict())
    buffers = [(n, b) for n, b in model.named_buffers() if n in saved and b.is_floating_point()]
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *buffers]:
            noise = torch.randn(value.shape, generator=generator)
            if value.ndim <= 1:
                value.add_(noise * 0.1)
            elif "embed" in name or "wte" in name:
                value.copy_(noise)
            else:
                value.copy_(noise / math.sqrt(value.shape[-1]))


def save_checkpoint(key: str, folder: Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Path:
    """A random checkpoint of a key in `folder`; `changes` are fields of its config."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(make_config(key, **changes)).float()
    randomize(model, seed)
    model.to(dtype).save_pretrained(folder)
    return folder


def original_logits(folder: Path, ids: list[int]) -> Any:
    """transformers' own logits [T, V] in float32, by its eager attention."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
