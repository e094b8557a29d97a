"""Architectures that the tests of the model share: one or more for each gene, small and with large weights."""

from typing import Any

import torch

from codenas_hf.architecture.genome import Genome
from codenas_hf.modeling_codenas import CodeNASForCausalLM

BASE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
}
GENES: dict[str, dict[str, Any]] = {
    "llama": {},
    "untied": {"tie_word_embeddings": False},
    "learned": {"position_embedding_type": "learned", "max_position_embeddings": 64},
    "alibi": {"position_embedding_type": "alibi", "num_attention_heads": 6, "head_dim": 8},
    "no position": {"position_embedding_type": "none"},
    "layernorm plain gelu": {"norm_type": "layernorm", "mlp_type": "plain", "hidden_act": "gelu"},
    "relu2": {"mlp_type": "plain", "hidden_act": "relu2"},
    "head_dim": {"head_dim": 32},
    "qk_norm": {"qk_norm": True},
    "all sliding": {"layer_pattern": "s", "sliding_window": 6},
    "sliding and full": {"layer_pattern": "sf", "sliding_window": 6},
    "conv": {"layer_pattern": "cf"},
    "conv of 4 taps, sliding": {"layer_pattern": "csf", "sliding_window": 7, "conv_kernel_size": 4},
    "conv, sliding, alibi": {"layer_pattern": "csf", "sliding_window": 7, "position_embedding_type": "alibi"},
    "residual_scalars": {"residual_scalars": True},
    "softcap": {"final_logit_softcapping": 5.0},
    "layer_repeats": {"layer_repeats": 2},
    "layer_repeats, conv": {"layer_repeats": 2, "layer_pattern": "cf"},
    "parallel": {"parallel_residual": True},
    "per layer": {
        "num_attention_heads": (4, 2, 4, 6),
        "num_key_value_heads": (2, 1, 4, 3),
        "head_dim": (16, 32, 16, 8),
        "intermediate_size": (96, 40, 96, 64),
        "hidden_act": ("silu", "relu2", "silu", "gelu"),
        "mlp_type": ("gated", "plain", "gated", "gated"),
    },
}


def make_genome(**genes: Any) -> Genome:
    """The base architecture with some genes changed."""
    return Genome(**(BASE | genes))


def make_model(genome: Genome, *, seed: int = 0) -> CodeNASForCausalLM:
    """A model in evaluation mode whose weights are large enough that a mistake shows in the logits."""
    torch.manual_seed(seed)
    model = CodeNASForCausalLM(genome.to_config(bos_token_id=1, eos_token_id=1, pad_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
