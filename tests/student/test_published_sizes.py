"""Parameters of published models, from their configs and by hand, weight by weight."""

import pytest
import torch
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, XLMRobertaConfig, XLMRobertaModel

from hf_distill import make_student
from hf_distill.student.architectures import skeleton

BERT = {"vocab_size": 30_522, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
XLM_R = {**BERT, "vocab_size": 250_002, "max_position_embeddings": 514, "type_vocab_size": 1}
MINILM = {**BERT, "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6}

MODELS = {
    # name: model class, config class, config, parameters that are published
    "bert-base-uncased": (BertModel, BertConfig, BERT, 109_482_240),
    "TinyBERT_General_4L_312D": (
        BertModel,
        BertConfig,
        {"vocab_size": 30_522, "hidden_size": 312, "intermediate_size": 1200, "num_hidden_layers": 4},
        14_350_248,
    ),
    "MiniLM-L6-H384-uncased": (BertModel, BertConfig, MINILM, 22_713_216),
    "distilbert-base-uncased": (DistilBertModel, DistilBertConfig, {"vocab_size": 30_522}, 66_362_880),
    "xlm-roberta-base": (XLMRobertaModel, XLMRobertaConfig, XLM_R, 278_043_648),
    "paraphrase-multilingual-MiniLM-L12-v2": (
        BertModel,
        BertConfig,
        {**MINILM, "vocab_size": 250_037, "num_hidden_layers": 12},
        117_653_760,
    ),
}


def embeddings_by_hand(vocabulary: int, width: int, positions: int = 512, types: int = 2) -> int:
    norm = 2 * width  # weight and bias
    return vocabulary * width + positions * width + types * width + norm


def layer_by_hand(width: int, inner: int) -> int:
    projections = 4 * (width * width + width)  # query, key, value and output, each with a bias
    feed_forward = (width * inner + inner) + (inner * width + width)
    norms = 2 * (2 * width)
    return projections + feed_forward + norms


def bert_by_hand(
    vocabulary: int, width: int, inner: int, layers: int, positions: int = 512, types: int = 2, pooler: bool = True
) -> int:
    of_pooler = width * width + width if pooler else 0
    return embeddings_by_hand(vocabulary, width, positions, types) + layers * layer_by_hand(width, inner) + of_pooler


def parameters(name: str, **changes: int) -> int:
    """Counted in a model without weights."""
    model_class, config_class, config, _ = MODELS[name]
    heads = {} if config_class is DistilBertConfig else {"num_attention_heads": 12}
    return skeleton(model_class, config_class(**{**config, **heads, **changes})).num_parameters()


BY_HAND = {
    "bert-base-uncased": bert_by_hand(30_522, 768, 3072, 12),
    "TinyBERT_General_4L_312D": bert_by_hand(30_522, 312, 1200, 4),
    "MiniLM-L6-H384-uncased": bert_by_hand(30_522, 384, 1536, 6),
    "distilbert-base-uncased": bert_by_hand(30_522, 768, 3072, 6, types=0, pooler=False),
    "xlm-roberta-base": bert_by_hand(250_002, 768, 3072, 12, positions=514, types=1),
    "paraphrase-multilingual-MiniLM-L12-v2": bert_by_hand(250_037, 384, 1536, 12),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters(name):
    published = MODELS[name][-1]
    assert parameters(name) == published == BY_HAND[name]


@pytest.mark.parametrize(
    ("student", "teacher", "share"),
    [
        ("distilbert-base-uncased", "bert-base-uncased", 0.606),
        ("MiniLM-L6-H384-uncased", "bert-base-uncased", 0.207),
        ("TinyBERT_General_4L_312D", "bert-base-uncased", 0.131),
    ],
)
def test_share_of_the_teacher(student, teacher, share):
    assert parameters(student) / parameters(teacher) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("bert-base-uncased", 0.214),
        ("MiniLM-L6-H384-uncased", 0.516),
        ("xlm-roberta-base", 0.691),
        ("paraphrase-multilingual-MiniLM-L12-v2", 0.816),
    ],
)
def test_share_of_the_vocabulary(name, share):
    _, _, config, published = MODELS[name]
    assert config["vocab_size"] * config["hidden_size"] / published == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "share"), [("bert-base-uncased", 0.612), ("MiniLM-L6-H384-uncased", 0.766), ("xlm-roberta-base", 0.847)]
)
def test_half_of_the_layers(name, share):
    """Why depth alone is not enough: the embeddings stay whole."""
    number = MODELS[name][2]["num_hidden_layers"]
    assert parameters(name, num_hidden_layers=number // 2) / parameters(name) == pytest.approx(share, abs=5e-4)


def test_a_smaller_vocabulary():
    """XLM-R with 30,000 tokens has the size of BERT."""
    trimmed = parameters("xlm-roberta-base", vocab_size=30_000)
    assert trimmed == 278_043_648 - (250_002 - 30_000) * 768 == 109_082_112
    assert trimmed == bert_by_hand(30_000, 768, 3072, 12, positions=514, types=1)
    assert trimmed / parameters("xlm-roberta-base") == pytest.approx(0.392, abs=5e-4)


@pytest.mark.parametrize(
    ("sizes", "by_hand"),
    [
        (
            {"num_layers": 3, "hidden_size": 48, "num_attention_heads": 6, "intermediate_size": 192},
            {"width": 48, "inner": 192, "layers": 3},
        ),
        ({"hidden_size": 64, "num_attention_heads": 8}, {"width": 64}),
        ({"num_layers": 4, "intermediate_size": 150}, {"layers": 4, "inner": 150}),
        ({"num_layers": 3}, {"layers": 3}),
    ],
)
def test_students(sizes, by_hand):
    """A student of a model with BERT's proportions has the parameters that its sizes give by hand."""
    torch.manual_seed(0)
    whole = {"vocabulary": 3052, "width": 96, "inner": 384, "layers": 6}
    sizes_of_teacher = {"vocab_size": 3052, "hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 6}
    config = BertConfig(**sizes_of_teacher, num_attention_heads=12)
    student = make_student(BertModel(config), **sizes)
    assert student.num_parameters() == bert_by_hand(**whole | by_hand)
    assert skeleton(BertModel, student.config).num_parameters() == student.num_parameters()
