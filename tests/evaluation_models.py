"""Tiny models and tokenizers for the tests of evaluation; made in memory, no network."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|pad|>"]
TEXT = "def add(first, second):\n    return first + second\n\n\ndef double(number):\n    return add(number, number)\n"


def tiny_tokenizer(*, special: list[str] = SPECIAL, isolate_indent: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE of about 330 entries trained on a few lines of code."""
    backend = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if isolate_indent:
        split = pre_tokenizers.Split(Regex("\n[ \t]*"), "isolated")
        byte_level = pre_tokenizers.Sequence([split, byte_level])
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT * 5], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=special[0],
        bos_token=special[0],
        pad_token=special[-1],
        extra_special_tokens=special[1:-1],
        clean_up_tokenization_spaces=False,
    )


def tiny_model(
    tokenizer: PreTrainedTokenizerFast, *, context: int = 128, seed: int = 0, spread: float = 0.2
) -> LlamaForCausalLM:
    """A random two-layer llama of the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=spread,
    )
    return LlamaForCausalLM(config).eval()


def learn(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, *, steps: int = 40) -> None:
    """Trains the model to know one text by heart, with and without the start token."""
    inside = tokenizer(text)["input_ids"]
    ids = torch.tensor(
        [[tokenizer.bos_token_id, *inside, tokenizer.eos_token_id], [*inside, *[tokenizer.eos_token_id] * 2]]
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.02:
            break
    model.eval()
