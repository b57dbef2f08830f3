"""Converts BERT to DistilBERT: the same layers, without token types and without a pooler."""

import re
from collections.abc import Callable

import transformers
from transformers import BertConfig, DistilBertConfig, PreTrainedModel

from hf_distill.student.architectures import skeleton

HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)

POOLED_HEADS = ("ForSequenceClassification", "ForMultipleChoice")
"""Heads that use the pooler. In DistilBERT the pooler is part of the head, as `pre_classifier`, with ReLU for tanh."""

RENAMED: dict[str, str | Callable[[re.Match[str]], str]] = {
    r"(bert\.)?pooler\.dense": "pre_classifier",
    r"bert\.": "distilbert.",
    r"encoder\.layer\.": "transformer.layer.",
    r"attention\.self\.(query|key|value)": lambda match: f"attention.{match[1][0]}_lin",
    r"attention\.output\.dense": "attention.out_lin",
    r"attention\.output\.LayerNorm": "sa_layer_norm",
    r"intermediate\.dense": "ffn.lin1",
    r"(layer\.\d+\.)output\.dense": r"\1ffn.lin2",
    r"(layer\.\d+\.)output\.LayerNorm": r"\1output_layer_norm",
    r"cls\.predictions\.transform\.dense": "vocab_transform",
    r"cls\.predictions\.transform\.LayerNorm": "vocab_layer_norm",
    r"cls\.predictions\.decoder": "vocab_projector",
}


def to_distilbert(bert: PreTrainedModel) -> PreTrainedModel:
    """Makes a DistilBERT with the layers, embeddings and head of a BERT (Sanh et al., 2019, section 3).

    The embedding of token type 0 is added to the position embeddings, so single texts (without a second segment) get
    the same hidden states. Heads that use the pooler keep its weights, but DistilBERT applies ReLU where BERT applies
    tanh: the logits of sequence classification and multiple choice differ until they are trained. The logits of the
    other heads are the same.

    Args:
        bert: `BertModel`, or `BertFor` masked LM, sequence or token classification, question answering or multiple
            choice.

    Returns:
        The `DistilBert...` class of the same name. It shares memory with `bert`.

    Raises:
        ValueError: if DistilBERT has no such class, or if the model uses a feature that DistilBERT does not have.
    """
    head = type(bert).__name__.removeprefix("Bert")
    if not isinstance(bert.config, BertConfig) or head not in HEADS:
        known = ", ".join(f"Bert{name}" for name in HEADS)
        raise ValueError(f"Cannot make a DistilBERT from {type(bert).__name__}: the teacher must be one of {known}.")
    config = bert.config
    if config.layer_norm_eps != 1e-12 or config.is_decoder:
        raise ValueError(
            f"DistilBERT is an encoder with layer_norm_eps=1e-12, but this {type(bert).__name__} has is_decoder="
            f"{config.is_decoder} and layer_norm_eps={config.layer_norm_eps}: its outputs would change. Leave family "
            f"out."
        )
    weights = {}
    for name, weight in bert.state_dict().items():
        if name.endswith("position_embeddings.weight"):
            token_types = bert.base_model.embeddings.token_type_embeddings
            weight = weight + token_types.weight[0]
        for pattern, new in RENAMED.items():
            name = re.sub(pattern, new, name)
        weights[name] = weight
    distilbert = skeleton(
        getattr(transformers, f"DistilBert{head}"), _distilbert_config(config), bert.device, bert.dtype
    )
    not_in_distilbert = {name for name in weights if "token_type" in name or name == "cls.predictions.bias"}
    if head not in POOLED_HEADS:
        not_in_distilbert |= {"pre_classifier.weight", "pre_classifier.bias"}
    distilbert.load_state_dict({name: weights[name] for name in weights.keys() - not_in_distilbert}, assign=True)
    distilbert.tie_weights()
    return distilbert


def _distilbert_config(config: BertConfig) -> DistilBertConfig:
    head_dropout = config.classifier_dropout
    return DistilBertConfig(
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        dim=config.hidden_size,
        hidden_dim=config.intermediate_size,
        dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        activation=config.hidden_act,
        initializer_range=config.initializer_range,
        seq_classif_dropout=config.hidden_dropout_prob if head_dropout is None else head_dropout,
        pad_token_id=config.pad_token_id,
        bos_token_id=config.bos_token_id,
        eos_token_id=config.eos_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
        id2label=config.id2label,
        label2id=config.label2id,
        problem_type=config.problem_type,
        attn_implementation=config._attn_implementation,
        name_or_path=config.name_or_path,
    )
