"""Small stand-ins for training and evaluation tests: tokens from a formula, and a Llama of a few thousand weights."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from codenas_hf.training import OptimSettings, build_model

VOCAB = 48


class FakeTokens:
    """Sequences that a model can learn: each token follows from the one before, in documents of 11 tokens."""

    digest = "fake"
    bytes_per_token = 3.0

    def batch(
        self,
        step: int,
        *,
        sequences: int,
        length: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        fim_rate: float = 0.0,
    ) -> dict[str, np.ndarray]:
        """Ranks share the rows of a step as `Tokens.batch` does; rows differ in how many labels are targets."""
        rows = []
        for row in range(sequences):
            rng = np.random.default_rng([seed, (step * world + rank) * sequences + row])
            start = rng.integers(VOCAB)
            rows.append((start + 5 * np.arange(length) + rng.integers(2, size=length)) % VOCAB)
        ids = np.stack(rows).astype(np.int64)
        labels = ids.copy()
        for row in range(sequences):
            labels[row, : 1 + 3 * (((step * world + rank) * sequences + row) % 5)] = -100
        positions = np.broadcast_to(np.arange(length) % 11, ids.shape).astype(np.int64).copy()
        return {"input_ids": ids, "labels": labels, "position_ids": positions}


def tiny_model(
    *, width: int = 16, layers: int = 2, tied: bool = True, seed: int = 0, **optim: object
) -> LlamaForCausalLM:
    """A fresh Llama, started by the width rule."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=tied,
    )
    model = build_model(LlamaForCausalLM, config, settings=OptimSettings(**optim), seed=seed)  # type: ignore[arg-type]
    assert isinstance(model, LlamaForCausalLM)
    return model


def weights(model: torch.nn.Module) -> torch.Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
