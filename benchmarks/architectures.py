"""Tiny configurations of every decoder that transformers knows: what a sweep compiles and compares.

`CONFIGS` has those that need fields of their own, `KEY@variant` for another configuration of one type. All other causal types
are tried with COMMON alone.
"""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
NAMED_OTHERWISE = (
    "intermediate_size",
    "num_key_value_heads",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OLD_NAMES = ("gpt2", "gptj", "bloom", "mpt", "dbrx", "gpt_bigcode", "codegen", "gpt_neo", "xglm")

VISION: dict[str, Any] = {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'image_size': 32, 'patch_size': 16}  # fmt: skip
QWEN_VISION: dict[str, Any] = {'hidden_size': 32, 'intermediate_size': 48, 'depth': 1, 'num_heads': 2, 'out_hidden_size': 64}  # fmt: skip

INDEXER: dict[str, Any] = {
    "index_topk": 8,
    "index_n_heads": 16,
    "index_head_dim": 16,
}  # fewer heads give many scores of exactly 0: eager's choice among equal ones is its sort's
DOTS3: dict[str, Any] = {
    'layer_types': ['indexed_attention', 'sliding_attention'], 'sliding_window': 8, 'num_key_value_heads': 4, 'head_dim': 24, 'q_lora_rank': 32, 'kv_lora_rank': 32, 'qk_nope_head_dim': 16,
    'qk_rope_head_dim': 8, 'v_head_dim': 24, 'swa_num_attention_heads': 4, 'swa_num_key_value_heads': 4, 'swa_q_lora_rank': 32, 'swa_kv_lora_rank': 32, 'swa_head_dim': 24, 'swa_qk_nope_head_dim': 16, 'swa_v_head_dim': 16,
    'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'shared_experts_intermediate_size': 48, 'first_k_dense_replace': 1, **INDEXER,
}  # fmt: skip

CONFIGS: dict[str, dict[str, Any]] = {
    'llama': {'head_dim': 16},
    'llama@llama3': {'head_dim': 16, 'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0, 'original_max_position_embeddings': 64}},
    'llama@yarn': {'head_dim': 16, 'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 64}},
    'llama@linear': {'head_dim': 16, 'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'linear', 'factor': 4.0}},
    'llama@dynamic': {'head_dim': 16, 'rope_parameters': {'rope_theta': 10000.0, 'rope_type': 'dynamic', 'factor': 4.0}},
    'mistral': {'head_dim': 16, 'sliding_window': 8},
    'qwen2': {'use_sliding_window': True, 'sliding_window': 8, 'max_window_layers': 1},
    'qwen3': {'head_dim': 16},
    'gemma': {'head_dim': 16},
    'gemma2': {'head_dim': 16, 'sliding_window': 8, 'query_pre_attn_scalar': 32, 'layer_types': ['sliding_attention', 'full_attention']},
    'gemma3_text': {'head_dim': 16, 'sliding_window': 8, 'query_pre_attn_scalar': 32, 'layer_types': ['sliding_attention', 'full_attention']},
    'gemma3n_text': {'head_dim': 16, 'num_hidden_layers': 4, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention'], 'num_kv_shared_layers': 2, 'vocab_size_per_layer_input': 256, 'hidden_size_per_layer_input': 16, 'laurel_rank': 8, 'altup_num_inputs': 2, 'activation_sparsity_pattern': [0.5, 0.5, 0.0, 0.0], 'intermediate_size': [96, 96, 96, 96]},
    'gemma4_text': {'head_dim': 16, 'vocab_size_per_layer_input': 256, 'hidden_size_per_layer_input': 16, 'per_layer_config': {'01': {'head_dim': 32}, '03': {'head_dim': 32}}, 'num_hidden_layers': 4, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention']},
    'phi': {'partial_rotary_factor': 0.5},
    'phi3': {'sliding_window': None, 'original_max_position_embeddings': 64},
    'phi3@longrope': {'original_max_position_embeddings': 64, 'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 10000.0, 'short_factor': [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7000000000000002], 'long_factor': [2.0, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6, 2.7], 'original_max_position_embeddings': 64}},
    'phimoe': {'num_local_experts': 8, 'num_experts_per_tok': 2},
    'olmo': {},
    'olmo2': {},
    'olmo3': {'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention']},
    'stablelm': {'partial_rotary_factor': 0.25},
    'starcoder2': {'sliding_window': 8},
    'granite': {'embedding_multiplier': 12.0, 'residual_multiplier': 0.22, 'attention_multiplier': 0.0625, 'logits_scaling': 8.0},
    'granitemoe': {'num_local_experts': 8, 'num_experts_per_tok': 2, 'embedding_multiplier': 12.0, 'residual_multiplier': 0.22, 'attention_multiplier': 0.0625, 'logits_scaling': 8.0},
    'granitemoeshared': {'num_local_experts': 8, 'num_experts_per_tok': 2, 'shared_intermediate_size': 48},
    'cohere': {'logit_scale': 0.0625, 'use_qk_norm': True},
    'cohere2': {'head_dim': 16, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention']},
    'falcon': {'new_decoder_architecture': True, 'num_kv_heads': 2, 'alibi': False},
    'falcon@alibi': {'new_decoder_architecture': False, 'multi_query': True, 'alibi': True},
    'gpt2': {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 256, 'n_inner': None},
    'gpt_neox': {'rotary_pct': 0.25},
    'gptj': {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 256, 'rotary_dim': 8},
    'opt': {'ffn_dim': 96, 'word_embed_proj_dim': 64},
    'bloom': {'n_layer': 2, 'n_head': 4},
    'mpt': {'d_model': 64, 'n_heads': 4, 'n_layers': 2, 'max_seq_len': 256},
    'mixtral': {'num_local_experts': 8, 'num_experts_per_tok': 2},
    'qwen2_moe': {'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'shared_expert_intermediate_size': 48, 'decoder_sparse_step': 1},
    'qwen3_moe': {'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'head_dim': 16, 'decoder_sparse_step': 1, 'norm_topk_prob': True},
    'olmoe': {'num_experts': 8, 'num_experts_per_tok': 2},
    'gpt_oss': {'head_dim': 16, 'num_local_experts': 8, 'num_experts_per_tok': 2, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'], 'rope_parameters': {'rope_type': 'yarn', 'factor': 4.0, 'original_max_position_embeddings': 64, 'beta_fast': 32.0, 'beta_slow': 1.0, 'rope_theta': 10000.0}},
    'deepseek_v2': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'first_k_dense_replace': 1, 'n_group': 2, 'topk_group': 1, 'topk_method': 'group_limited_greedy', 'num_key_value_heads': 4},
    'deepseek_v3': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'first_k_dense_replace': 1, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4},
    'deepseek_v32': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'first_k_dense_replace': 1, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4, **INDEXER},
    'glm': {'head_dim': 16, 'partial_rotary_factor': 0.5},
    'glm4': {'head_dim': 16, 'partial_rotary_factor': 0.5},
    'glm4_moe': {'head_dim': 16, 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'first_k_dense_replace': 1, 'n_group': 1, 'topk_group': 1, 'use_qk_norm': True},
    'exaone4': {'head_dim': 16, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention']},
    'smollm3': {'no_rope_layers': [1, 0]},
    'nemotron': {'head_dim': 16, 'partial_rotary_factor': 0.5},
    'helium': {'head_dim': 16},
    'ernie4_5': {'head_dim': 16},
    'ernie4_5_moe': {'moe_num_experts': 8, 'moe_k': 2, 'moe_intermediate_size': 48, 'moe_num_shared_experts': 1, 'moe_layer_start_index': 1, 'moe_layer_end_index': 1},
    'minimax': {'head_dim': 16, 'num_local_experts': 8, 'num_experts_per_tok': 2, 'layer_types': ['linear_attention', 'full_attention'], 'block_size': 16},
    'minimax@full': {'head_dim': 16, 'num_local_experts': 8, 'num_experts_per_tok': 2, 'layer_types': ['full_attention', 'full_attention'], 'block_size': 16},
    'minimax_m2': {'head_dim': 16, 'num_local_experts': 8, 'num_experts_per_tok': 2},
    'llama4_text': {'head_dim': 16, 'intermediate_size_mlp': 96, 'num_local_experts': 4, 'num_experts_per_tok': 1, 'attention_chunk_size': 8, 'no_rope_layers': [1, 0], 'interleave_moe_layer_step': 2, 'layer_types': ['chunked_attention', 'full_attention']},
    'qwen3_next': {'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'head_dim': 16, 'layer_types': ['linear_attention', 'full_attention'], 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 16, 'linear_value_head_dim': 16, 'shared_expert_intermediate_size': 48, 'decoder_sparse_step': 1},
    'qwen3_5_text': {'head_dim': 16, 'layer_types': ['linear_attention', 'full_attention'], 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 16, 'linear_value_head_dim': 16},
    'mamba2': {'num_heads': 8, 'head_dim': 16, 'state_size': 16, 'n_groups': 2, 'expand': 2, 'chunk_size': 16},
    'bamba': {'mamba_n_heads': 8, 'mamba_d_head': 16, 'mamba_d_state': 16, 'mamba_n_groups': 2, 'mamba_expand': 2, 'mamba_chunk_size': 16, 'attn_layer_indices': [1]},
    'jamba': {'num_experts': 4, 'num_experts_per_tok': 2, 'attn_layer_period': 2, 'attn_layer_offset': 1, 'expert_layer_period': 2, 'expert_layer_offset': 1, 'mamba_d_state': 8, 'mamba_dt_rank': 8, 'use_mamba_kernels': False},
    'zamba2': {'num_mem_blocks': 1, 'mamba_ngroups': 2, 'n_mamba_heads': 8, 'mamba_d_state': 16, 'chunk_size': 16, 'num_hidden_layers': 4, 'layers_block_type': ['mamba', 'hybrid', 'mamba', 'hybrid']},
    'nemotron_h': {'head_dim': 16, 'hybrid_override_pattern': 'M*-', 'num_hidden_layers': 3, 'mamba_num_heads': 8, 'mamba_head_dim': 16, 'ssm_state_size': 16, 'n_groups': 2, 'chunk_size': 16},
    'falcon_h1': {'head_dim': 16, 'mamba_d_ssm': 128, 'mamba_n_heads': 8, 'mamba_d_head': 16, 'mamba_d_state': 16, 'mamba_n_groups': 2, 'mamba_chunk_size': 16},
    'granitemoehybrid': {'num_local_experts': 8, 'num_experts_per_tok': 2, 'shared_intermediate_size': 48, 'layer_types': ['mamba', 'attention'], 'mamba_n_heads': 8, 'mamba_d_head': 16, 'mamba_d_state': 16, 'mamba_n_groups': 2, 'mamba_expand': 2, 'mamba_chunk_size': 16},
    'lfm2': {'layer_types': ['conv', 'full_attention'], 'block_auto_adjust_ff_dim': False},
    'hunyuan_v1_dense': {'head_dim': 16},
    'hunyuan_v1_moe': {'head_dim': 16, 'num_experts': 8, 'moe_topk': 2, 'moe_intermediate_size': 48, 'num_shared_expert': 1},
    'seed_oss': {'head_dim': 16},
    'apertus': {},
    'arcee': {},
    'dots1': {'head_dim': 16, 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'first_k_dense_replace': 1, 'n_group': 1, 'topk_group': 1},
    'bitnet': {},
    'persimmon': {},
    'gpt_bigcode': {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 256, 'multi_query': True},
    'dbrx': {'d_model': 64, 'n_heads': 4, 'n_layers': 2, 'max_seq_len': 256, 'ffn_config': {'hidden_size': 64, 'ffn_hidden_size': 48, 'moe_num_experts': 4, 'moe_top_k': 2}, 'attn_config': {'kv_n_heads': 2, 'clip_qkv': 8, 'rope_theta': 10000.0}},
    'longcat_flash': {'num_layers': 2, 'ffn_hidden_size': 96, 'expert_ffn_hidden_size': 48, 'n_routed_experts': 8, 'zero_expert_num': 2, 'moe_topk': 2, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'num_key_value_heads': 4, 'head_dim': 8},
    'kimi_linear': {'layer_types': ['linear_attention', 'full_attention'], 'kv_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 16, 'num_key_value_heads': 4},
    'mimo_v2_flash': {'head_dim': 24, 'v_head_dim': 16, 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'sliding_window': 8, 'layer_types': ['full_attention', 'sliding_attention']},
    'doge': {'num_experts': 16, 'is_moe': False},
    'vaultgemma': {'head_dim': 16, 'sliding_window': 8, 'query_pre_attn_scalar': 32, 'layer_types': ['sliding_attention', 'full_attention']},
    'ministral': {'head_dim': 16, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention']},
    'ministral3': {'head_dim': 16},
    'afmoe': {'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'head_dim': 16, 'num_dense_layers': 1, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'], 'num_shared_experts': 1},
    'nanochat': {},
    'flex_olmo': {'num_experts': 8, 'num_experts_per_tok': 2},
    'recurrent_gemma': {'lru_width': 64, 'attention_window_size': 8, 'block_types': ['recurrent', 'attention']},
    'jais2': {'head_dim': 16},
    'youtu': {'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'num_key_value_heads': 4},
    'codegen': {'n_embd': 64, 'n_layer': 2, 'n_head': 4, 'n_positions': 256, 'rotary_dim': 8},
    'xglm': {'d_model': 64, 'num_layers': 2, 'attention_heads': 4, 'ffn_dim': 96},
    'biogpt': {},
    'diffllama': {},
    'mamba': {'state_size': 8, 'expand': 2, 'time_step_rank': 8},
    'lfm2_moe': {'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'layer_types': ['conv', 'full_attention'], 'num_dense_layers': 1},
    'solar_open': {'head_dim': 16, 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'first_k_dense_replace': 1, 'n_group': 1, 'topk_group': 1},
    'gpt_neo': {'hidden_size': 64, 'num_layers': 2, 'num_heads': 4, 'attention_types': [[['global', 'local'], 1]], 'window_size': 8},
    'glm4_moe_lite': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'first_k_dense_replace': 1, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4},
    'minicpm3': {'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 16, 'num_key_value_heads': 4},
    'axk1': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4},
    'axk2': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4, **INDEXER},
    'glm_moe_dsa': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4, 'num_hidden_layers': 3, 'indexer_types': ['full', 'shared', 'full'], **INDEXER},
    'hy_v4': {'n_routed_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'n_shared_experts': 1, 'kv_lora_rank': 32, 'q_lora_rank': 32, 'qk_nope_head_dim': 16, 'qk_rope_head_dim': 8, 'v_head_dim': 24, 'n_group': 2, 'topk_group': 1, 'num_key_value_heads': 4, 'num_hidden_layers': 3, 'indexer_types': ['full', 'shared', 'full'], **INDEXER},
    'dots3_note_text': DOTS3,
    'dots3_note': {'text_config': DOTS3, 'vision_config': {**VISION, 'adapter_in_dim': 32, 'adapter_out_dim': 64, 'mlp_layer_types': ['dense']}, 'audio_config': {'hidden_size': 32, 'intermediate_size': 48, 'num_hidden_layers': 1, 'num_attention_heads': 2, 'downsample_hidden_size': 16, 'adapter_input_size': 32, 'adapter_out_dim': 64}},
    'inkling_text': {'head_dim': 16, 'layer_types': ['hybrid_sliding', 'hybrid'], 'swa_num_attention_heads': 4, 'swa_num_key_value_heads': 2, 'swa_head_dim': 16, 'sliding_window_size': 8, 'd_rel': 8, 'rel_extent': 16, 'moe_intermediate_size': 48, 'n_routed_experts': 8, 'num_experts_per_tok': 2, 'n_shared_experts': 1},
    'kolibri1': {'head_dim': 16, 'sliding_window': 9, 'moe_intermediate_size': 48, 'num_local_experts': 8, 'num_experts_per_tok': 2, 'shared_expert_intermediate_size': 48},
    'qwen4_exp_text': {'head_dim': 16, 'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'shared_expert_intermediate_size': 48, 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 16, 'linear_value_head_dim': 16, 'hc_count': 2, 'hc_lowrank': 16, 'ple_embed_dim': 32, 'layer_types': ['linear_attention', 'full_attention']},
    'cohere_compass_text': {'head_dim': 16, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention'], 'rope_parameters': {k: {'rope_type': 'default', 'rope_theta': 10000.0} for k in ('sliding_attention', 'full_attention')}},
    'zamba': {'attention_hidden_size': 128, 'attention_head_dim': 32, 'num_key_value_heads': 4, 'num_hidden_layers': 4, 'layers_block_type': ['mamba', 'hybrid', 'mamba', 'hybrid'], 'mamba_d_state': 8, 'mamba_dt_rank': 8, 'use_mamba_kernels': False},
    **{kind: {'is_decoder': True} for kind in ('bert', 'bert-generation', 'big_bird', 'camembert', 'data2vec-text', 'electra', 'ernie', 'megatron-bert', 'rembert', 'roberta', 'roberta-prelayernorm', 'roc_bert', 'roformer', 'xlm-roberta', 'xlm-roberta-xl')},
    'xmod': {'is_decoder': True, 'default_language': 'en_XX', 'languages': ['en_XX']},
    'gemma3': {'text_config': {'head_dim': 16, 'sliding_window': 8, 'query_pre_attn_scalar': 32, 'layer_types': ['sliding_attention', 'full_attention']}, 'vision_config': VISION},
    'gemma4': {'text_config': {'head_dim': 16, 'vocab_size_per_layer_input': 256, 'hidden_size_per_layer_input': 16, 'num_hidden_layers': 4, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention'], 'per_layer_config': {'01': {'head_dim': 32}, '03': {'head_dim': 32}}}, 'vision_config': VISION, 'audio_config': None},
    'gemma4_unified': {'text_config': {'head_dim': 16, 'vocab_size_per_layer_input': 256, 'hidden_size_per_layer_input': 16, 'num_hidden_layers': 4, 'sliding_window': 8, 'layer_types': ['sliding_attention', 'full_attention', 'sliding_attention', 'full_attention'], 'per_layer_config': {'01': {'head_dim': 32}, '03': {'head_dim': 32}}}, 'vision_config': VISION, 'audio_config': None},
    'llama4': {'text_config': {'head_dim': 16, 'intermediate_size_mlp': 96, 'num_local_experts': 4, 'num_experts_per_tok': 1, 'attention_chunk_size': 8, 'no_rope_layers': [1, 0], 'interleave_moe_layer_step': 2, 'layer_types': ['chunked_attention', 'full_attention']}, 'vision_config': {**VISION, 'vision_output_dim': 32, 'projector_input_dim': 32, 'projector_output_dim': 32}},
    'mllama': {'text_config': {'cross_attention_layers': [1], 'num_hidden_layers': 3}, 'vision_config': {**VISION, 'num_global_layers': 1, 'vision_output_dim': 32, 'intermediate_layers_indices': [0]}},
    'emu3': {'text_config': {}, 'vq_config': {'base_channels': 32, 'num_res_blocks': 1, 'channel_multiplier': [1, 1], 'codebook_size': 64, 'embed_dim': 8, 'latent_channels': 8}},
    'qwen3_5': {'text_config': {'head_dim': 16, 'layer_types': ['linear_attention', 'full_attention'], 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 16, 'linear_value_head_dim': 16}, 'vision_config': QWEN_VISION},
    'qwen3_5_moe': {'text_config': {'head_dim': 16, 'num_experts': 8, 'num_experts_per_tok': 2, 'moe_intermediate_size': 48, 'shared_expert_intermediate_size': 48, 'layer_types': ['linear_attention', 'full_attention'], 'linear_num_value_heads': 4, 'linear_num_key_heads': 2, 'linear_key_head_dim': 16, 'linear_value_head_dim': 16}, 'vision_config': QWEN_VISION},
    'got_ocr2': {'text_config': {}, 'vision_config': VISION},
    'prophetnet': {'num_encoder_layers': 2, 'num_decoder_layers': 2, 'num_encoder_attention_heads': 4, 'num_decoder_attention_heads': 4, 'encoder_ffn_dim': 96, 'decoder_ffn_dim': 96},
    'git': {'vision_config': VISION},
    'moss_transcribe_diarize': {'text_config': {'head_dim': 16}, 'audio_config': {'d_model': 32, 'encoder_layers': 1, 'encoder_attention_heads': 2, 'encoder_ffn_dim': 48, 'hidden_size': 32}, 'audio_token_id': 255},
    'phi4_multimodal': {'original_max_position_embeddings': 64, 'vision_config': {**VISION, 'image_size': 56, 'patch_size': 14, 'crop_size': 56}, 'audio_config': {'hidden_size': 32, 'intermediate_size': 48, 'num_blocks': 1, 'num_attention_heads': 2, 'nemo_conv_channels': 32, 'ext_pw_out_channel': 32, 'depthwise_separable_out_channel': 32}},
    'reformer': {'is_decoder': True, 'axial_pos_shape': [16, 16], 'axial_pos_embds_dim': [32, 32], 'attn_layers': ['local', 'local'], 'attention_head_size': 16, 'feed_forward_size': 96},
    'plbart': {'d_model': 64, 'decoder_layers': 2, 'decoder_attention_heads': 4, 'decoder_ffn_dim': 96, 'encoder_attention_heads': 4},
    'whisper': {'d_model': 64, 'decoder_layers': 2, 'decoder_attention_heads': 4, 'decoder_ffn_dim': 96, 'encoder_attention_heads': 4, 'max_target_positions': 256},
}  # fmt: skip


def causal_types() -> list[str]:
    """Every model type that AutoModelForCausalLM builds."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def keys() -> list[str]:
    """Every configuration: those with fields of their own, then the remaining types."""
    own = {key.partition("@")[0] for key in CONFIGS}
    return [*CONFIGS, *(kind for kind in causal_types() if kind not in own)]


def make_config(key: str, **changes: Any) -> Any:
    """The configuration of a key, with fields changed."""
    from transformers import AutoConfig

    kind = key.partition("@")[0]
    own = CONFIGS.get(key, {})
    if "text_config" in own:
        fields = {**own, **changes, "text_config": {**COMMON, **own["text_config"]}}
    else:
        fields = {**COMMON, **own, **changes}
    if kind == "prophetnet":
        del fields["num_hidden_layers"]
    if kind in OLD_NAMES:
        fields = {k: v for k, v in fields.items() if k not in NAMED_OTHERWISE or k in own}
        if kind in ("gpt2", "gptj", "mpt", "dbrx", "gpt_bigcode", "codegen", "xglm"):
            fields.pop("hidden_size", None)
    return AutoConfig.for_model(kind, **fields)
