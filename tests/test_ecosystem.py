"""Tools of the ecosystem: Trainer, TRL, PEFT, pipeline, flex attention; and 300 genomes of each space (slow)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from architectures import GENES, make_genome, make_model
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    StaticCache,
    Trainer,
    TrainingArguments,
    pipeline,
)

import codenas_hf.generation.loading  # noqa: F401  # the Auto classes then know our models
from codenas_hf.architecture.genome import Genome
from codenas_hf.architecture.space import SearchSpace

SPACES = sorted((Path(__file__).parent.parent / "configs" / "spaces").glob("[!s]*.yaml"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    """Bytes as tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|pad|>", "<|endoftext|>", *alphabet]
    backend = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )


def arguments(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "save_strategy": "no",
        "seed": 0,
        "lr_scheduler_type": "constant",
        **more,
    }


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("name", ["llama", "conv, sliding, alibi", "layer_repeats, conv", "per layer"])
def test_trainer_accumulates_and_checkpoints_the_same(name: str, tmp_path: Path) -> None:
    rows = [{"input_ids": ids, "labels": ids} for ids in np.random.default_rng(0).integers(2, 300, (64, 16)).tolist()]

    def run(**more: Any) -> list[float]:
        model = make_model(make_genome(**GENES[name]))
        settings = TrainingArguments(**arguments(tmp_path, **more))
        return losses(Trainer(model=model, args=settings, train_dataset=Dataset.from_list(rows)))

    plain = run(per_device_train_batch_size=8)
    assert plain[-1] < plain[0]
    split = run(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert split == pytest.approx(plain, rel=1e-3)
    assert run(per_device_train_batch_size=8, activation_checkpointing=True) == pytest.approx(plain, rel=1e-3)


def test_sft_trainer(words: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    data = Dataset.from_list([{"text": f"def f{i}(x):\n    return x + {i}\n"} for i in range(32)])
    settings = SFTConfig(**arguments(tmp_path, max_length=64, per_device_train_batch_size=4, bf16=False))
    trainer = SFTTrainer(model=make_model(make_genome()), args=settings, train_dataset=data, processing_class=words)
    found = losses(trainer)
    assert found[-1] < found[0]


def test_lora_changes_little_and_merges() -> None:
    from peft import LoraConfig, get_peft_model

    model, x = make_model(make_genome(**GENES["conv"])), torch.randint(3, 300, (2, 16))
    tuned = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj", "in_proj"], init_lora_weights=False))
    assert 0 < tuned.num_parameters(only_trainable=True) < 0.2 * model.num_parameters()
    tuned(input_ids=x, labels=x).loss.backward()
    with torch.inference_mode():
        before = tuned(x).logits
        assert torch.allclose(tuned.merge_and_unload()(x).logits, before, atol=1e-3)


def test_pipeline_and_token_healing(words: PreTrainedTokenizerFast) -> None:
    model = make_model(make_genome(**GENES["conv"]))
    generate = pipeline("text-generation", model=model, tokenizer=words)
    text = generate("def f(", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("def f(")
    ids = words("def f(", return_tensors="pt")["input_ids"]
    healed = model.generate(ids, tokenizer=words, token_healing=True, max_new_tokens=5, do_sample=False)
    assert healed.shape[1] > ids.shape[1]


@pytest.mark.parametrize("name", ["llama", "sliding and full", "alibi", "conv"])
@pytest.mark.timeout(600)
def test_flex_attention_is_the_same(name: str) -> None:
    model = make_model(make_genome(**(GENES[name] | {"num_attention_heads": 4, "head_dim": 32})))
    x = torch.randint(3, 300, (2, 24))
    with torch.inference_mode():
        plain = model(x, use_cache=False).logits
        model.set_attn_implementation("flex_attention")
        assert (model(x, use_cache=False).logits - plain).abs().max() < 1e-3


def narrow(genome: Genome) -> Genome:
    """The same structure with few tokens and little width, so that 300 models are built in reasonable time."""
    genes = genome.to_dict()
    inner = genes["intermediate_size"]
    genes["intermediate_size"] = [8 + n % 16 for n in inner] if isinstance(inner, list) else 8 + inner % 16
    return Genome.from_dict(genes | {"vocab_size": 64, "hidden_size": 32, "head_dim": 8})


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_300_genomes_of_each_space(path: Path, tmp_path: Path) -> None:
    """Exact count, causal, cached = uncached, left-padded = unpadded, saved = loaded, static = dynamic cache."""
    space, rng = SearchSpace.from_yaml(path), np.random.default_rng(0)
    x = torch.randint(3, 64, (2, 20), generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[:, 12] = 3 + (x[:, 12] - 2) % 61
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), x), dim=1)
    mask = (torch.arange(23) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for _ in range(300):
        genome = narrow(space.sample(rng))
        model = make_model(genome)
        assert model.num_parameters() == genome.num_parameters()
        with torch.inference_mode():
            plain = model(x, use_cache=False).logits
            scale = max(1.0, plain.abs().max().item())
            assert torch.equal(model(changed, use_cache=False).logits[:, :12], plain[:, :12]), genome
            for cache in (None, StaticCache(config=model.config, max_cache_len=24)):
                first = model(x[:, :12], past_key_values=cache, use_cache=True)
                found = [first.logits]
                for i, end in ((12, 13), (13, 14), (14, 20)):
                    step = model(x[:, i:end], past_key_values=first.past_key_values, use_cache=True)
                    found.append(step.logits)
                assert (torch.cat(found, 1) - plain).abs().max() < 1e-4 * scale, genome
            left = model(padded, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, 3:]
            assert (left - plain).abs().max() < 1e-4 * scale, genome
            model.save_pretrained(tmp_path)
            assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(x, use_cache=False).logits, plain)
