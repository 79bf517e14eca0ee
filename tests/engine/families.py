"""Tiny models of many families with random weights large enough that a wrong mask shows."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 5}
OWN = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES = {
    "llama": BASE,
    "mistral": BASE | WINDOW,
    "gemma2": BASE | WINDOW | {"head_dim": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": BASE
    | WINDOW
    | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen2": BASE,
    "qwen3": BASE | {"head_dim": 8},
    "qwen3_moe": BASE | {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": OWN | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gpt_neox": BASE,
    "opt": OWN | {
        "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": 128, "word_embed_proj_dim": 32,
    },
    "phi3": BASE,
    "olmo2": BASE,
    "smollm3": BASE | {"no_rope_layers": [1, 0]},
    "granite": BASE | {"logits_scaling": 2.0, "attention_multiplier": 0.3, "residual_multiplier": 0.7},
    "starcoder2": BASE | WINDOW,
    "falcon": OWN | {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "new_decoder_architecture": True,
        "num_kv_heads": 2, "alibi": False,
    },
    "gpt_oss": BASE | WINDOW | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": OWN | {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "qwen3_next": BASE | {
        "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
}  # fmt: skip

UNSHARED = {"falcon", "bloom", "qwen3_next"}  # families whose prompts are not shared


def tiny(family: str, *, seed: int = 0):
    """A causal LM of this family in fp32, no dropout; weights so large that a wrong mask shows."""
    fields = dict(FAMILIES[family])
    for name in ("attention_dropout", "hidden_dropout", "embd_pdrop", "resid_pdrop", "attn_pdrop", "dropout",
                 "residual_dropout", "embedding_dropout"):  # fmt: skip
        fields[name] = 0.0
    config = AutoConfig.for_model(family, **fields)
    torch.manual_seed(seed)
    network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    # The gradients of a linear-attention layer's decay and of an expert router's bias are small sums of large terms:
    # with weights of 0.3, fp32 rounding alone passes 1e-5 of their size. The broken-mask test holds for 0.2 as well.
    scale = {"qwen3_next": 0.1, "gpt_oss": 0.2}.get(family, 0.3)
    with torch.no_grad():
        for p in network.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(scale * noise if p.ndim > 1 else p + scale * noise)
    return network.eval()
