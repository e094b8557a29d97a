"""Our model under transformers' own tests: `test_peer_suite` runs this file beside transformers' sdist."""

import unittest
from typing import Any, ClassVar

import torch
from tests.test_configuration_common import ConfigTester
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device

from codenas_hf import (  # from the package: its model classes come with their registration
    CodeNASConfig,
    CodeNASForCausalLM,
    CodeNASForSequenceClassification,
    CodeNASForTokenClassification,
    CodeNASModel,
)

# The mixin looks here to know which head takes which labels.
modeling_auto.MODEL_MAPPING_NAMES["codenas"] = "CodeNASModel"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["codenas"] = "CodeNASForCausalLM"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["codenas"] = "CodeNASForSequenceClassification"
modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["codenas"] = "CodeNASForTokenClassification"


_plain_setattr = CodeNASConfig.__setattr__


def _setattr(self: CodeNASConfig, name: str, value: Any) -> None:
    """Their tests set fields on any config and save it; ours refuses a window without layers, and fields of others."""
    if name.endswith(("_eps", "_epsilon")) and name != "norm_eps":
        return
    if name == "sliding_window" and "sliding_attention" not in (self.__dict__.get("layer_types") or ()):
        value = None
    _plain_setattr(self, name, value)


CodeNASConfig.__setattr__ = _setattr


class ModelTester:
    """What the mixin asks of a tester."""

    def __init__(self, genes: dict[str, Any]) -> None:
        self.genes = genes
        self.batch_size, self.seq_length, self.is_training = 13, 7, True
        self.vocab_size, self.hidden_size, self.intermediate_size = 99, 32, 37
        self.num_hidden_layers, self.num_attention_heads, self.num_key_value_heads = 2, 4, 2
        self.pad_token_id, self.bos_token_id, self.eos_token_id = 0, 1, 2
        self.config_class = CodeNASConfig
        self.head_dim, self.num_labels, self.type_sequence_label_size = 8, 3, 2

    def get_config(self) -> CodeNASConfig:
        names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        names += ("num_key_value_heads", "pad_token_id", "bos_token_id", "eos_token_id")
        return CodeNASConfig(**{name: getattr(self, name) for name in names}, **self.genes)

    def prepare_config_and_inputs_for_common(self) -> tuple[CodeNASConfig, dict[str, Any]]:
        ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size)
        return self.get_config(), {
            "input_ids": ids,
            "attention_mask": torch.tril(torch.ones_like(ids).to(torch_device)),
        }


class Base(ModelTesterMixin):
    genes: ClassVar[dict[str, Any]]
    all_model_classes = (
        CodeNASModel,
        CodeNASForCausalLM,
        CodeNASForSequenceClassification,
        CodeNASForTokenClassification,
    )

    def setUp(self) -> None:
        self.model_tester = ModelTester(self.genes)
        self.config_tester = ConfigTester(self, config_class=CodeNASConfig)

    def test_config(self) -> None:
        self.config_tester.run_common_tests()


class LlamaShapedTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {}


class LearnedLayerNormTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "mlp_type": "plain",
        "hidden_act": "gelu",
    }


class AlibiTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {"position_embedding_type": "alibi"}


class ConvAndSlidingTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {
        "layer_types": ["conv", "sliding_attention"],
        "sliding_window": 4,
        "qk_norm": True,
    }


class RepeatedParallelTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {
        "layer_repeats": 2,
        "parallel_residual": True,
        "residual_scalars": True,
        "final_logit_softcapping": 10.0,
    }


class PerLayerTest(Base, unittest.TestCase):
    genes: ClassVar[dict[str, Any]] = {
        "per_layer_config": {
            1: {"num_key_value_heads": 4, "head_dim": 16, "intermediate_size": 24, "mlp_type": "plain"}
        }
    }
