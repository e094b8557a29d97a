"""The configuration: what it refuses, and that it survives saving."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from codenas_hf import CodeNASConfig

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_layerz": 3}, "unknown field `num_layerz`.*did you mean `num_hidden_layers`"),
    ({"hidden_act": "swish"}, "`hidden_act` must be one of silu, gelu, relu2, got 'swish'"),
    ({"mlp_type": "swiglu"}, "`mlp_type` must be one of gated, plain"),
    ({"norm_type": "rms"}, "`norm_type` must be one of rmsnorm, layernorm.*did you mean `rmsnorm`"),
    ({"position_embedding_type": "rotary"}, "`position_embedding_type` must be one of rope, learned, alibi, none"),
    ({"qk_norm": 1}, "`qk_norm` must be true or false, got 1"),
    ({"hidden_size": 64.0}, "`hidden_size` must be a whole number of 1 or more, got 64.0"),
    ({"vocab_size": 0}, "`vocab_size` must be a whole number of 1 or more, got 0"),
    ({"conv_kernel_size": 1}, "`conv_kernel_size` must be a whole number of 2 or more, got 1"),
    ({"num_attention_heads": 3}, "`head_dim` is needed where `hidden_size`"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "must be a multiple of `num_key_value_heads`"),
    ({"head_dim": 15}, "rope needs an even `head_dim`, got 15"),
    ({"attention_dropout": 1.0}, "`attention_dropout` must be below 1"),
    ({"norm_eps": -1.0}, "`norm_eps` must be a number of 0 or more"),
    ({"final_logit_softcapping": 0}, "`final_logit_softcapping` must be above 0"),
    ({"layer_repeats": 3}, "`num_hidden_layers` .* must be a multiple of `layer_repeats`"),
    ({"layer_types": ["full_attention"]}, "`layer_types` must name all 4 layers"),
    ({"layer_types": ["full"] * 4}, "`layer_types` may hold .*, got 'full'; did you mean `full_attention`"),
    ({"layer_types": ["conv"] * 4}, "needs at least one attention layer"),
    ({"layer_types": ["sliding_attention"] * 4}, "`sliding_window` must be set exactly when"),
    ({"layer_types": ["full_attention"] * 4, "sliding_window": 8}, "`sliding_window` must be set exactly when"),
    ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type 'spiral'; allowed are default"),
    ({"per_layer_config": {1: {"hed_dim": 4}}}, r"per_layer_config\[1\].*`hed_dim`.*did you mean `head_dim`"),
    ({"per_layer_config": {1: {"norm_type": "layernorm"}}}, "between layers only .* may differ"),
    ({"per_layer_config": {1: {"hidden_act": "tanh"}}}, "layer 1: `hidden_act` must be one of"),
    (
        {"per_layer_config": {1: {"num_attention_heads": 3}}},
        r"layer 1: `num_attention_heads` \(3\) must be a multiple",
    ),
    ({"per_layer_config": {7: {"head_dim": 4}}}, r"range \[0, 4\)"),
    ({"layer_repeats": 2, "per_layer_config": {1: {"intermediate_size": 8}}}, "layers 0 and 1 are one block"),
    (
        {"layer_repeats": 2, "layer_types": ["conv", "full_attention"] * 2},
        "layers 0 and 1 are one block .* `layer_types` must be equal",
    ),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:50])
def test_refuses_with_a_clear_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeNASConfig(**fields)


def test_the_nearest_known_field_is_named_for_a_near_miss() -> None:
    with pytest.raises(ValueError, match="did you mean `num_attention_heads`"):
        CodeNASConfig(num_atention_heads=4)


def test_saving_and_loading_keeps_everything(tmp_path: Path) -> None:
    config = CodeNASConfig(
        per_layer_config={2: {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}},
        layer_types=["conv", "sliding_attention", "full_attention", "full_attention"],
        sliding_window=8,
        rope_theta=50_000.0,
        num_labels=3,
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, CodeNASConfig)
    ours, theirs = config.to_dict(), loaded.to_dict()
    assert ours.pop("_name_or_path") != theirs.pop("_name_or_path")
    assert theirs == ours
    assert [layer.head_dim for layer in loaded.per_layer_config] == [64, 64, 16, 64]
    assert loaded.rope_parameters == {"rope_type": "default", "rope_theta": 50_000.0}


def test_keys_of_others_in_a_config_file_are_kept(tmp_path: Path) -> None:
    CodeNASConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    data = json.loads(path.read_text()) | {"torch_dtype": "bfloat16", "auto_map": {}, "temperature": 0.5}
    path.write_text(json.dumps(data))
    assert str(CodeNASConfig.from_pretrained(tmp_path).dtype) == "torch.bfloat16"
    path.write_text(json.dumps(data | {"hiden_size": 3}))
    with pytest.raises(ValueError, match=r"`hiden_size`.*did you mean `hidden_size`"):
        CodeNASConfig.from_pretrained(tmp_path)


def test_a_contradiction_made_later_is_refused_when_the_model_is_built() -> None:
    from codenas_hf import CodeNASForCausalLM

    config = CodeNASConfig()
    config.sliding_window = 4
    with pytest.raises(ValueError, match="`sliding_window` must be set exactly when"):
        CodeNASForCausalLM(config)
