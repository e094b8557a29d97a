"""Parents of a few thousand weights for the tests of squeezing: a stock class and a byte-level BPE of its own."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

TEXTS = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("test_*.py"))[:12]]
ENTRIES = 900


def small_tokenizer() -> Tokenizer:
    """A tokenizer like SmolLM2's: digits apart, `<|endoftext|>` first, a token of chats behind it."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    words.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=["<|endoftext|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words.train_from_iterator(TEXTS, trainer)
    return words


def small_parent(folder: Path, *, kind: str = "llama", licence: str | None = "apache-2.0", **others: Any) -> Path:
    """Writes a parent with weights large enough that cutting and rounding show."""
    settings: dict[str, Any] = {
        "vocab_size": ENTRIES,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
    }
    if kind == "gpt2":
        settings = {"vocab_size": ENTRIES, "n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings | others))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.08)
    model.save_pretrained(folder)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=small_tokenizer(), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    fast.save_pretrained(folder)
    if licence is not None:
        (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\n\nA parent.\n", encoding="utf-8")
    return folder


def edit(path: Path, **values: Any) -> None:
    """Changes fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")
