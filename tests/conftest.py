"""Tiny models and batches, built from configs: nothing is downloaded and nothing is cached."""

import gc
import os
from types import SimpleNamespace

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that reaches for the Hub fails instead of waiting

import huggingface_hub.constants
import pytest
import torch
import transformers
from hypothesis import settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from hf_distill.deployment import onnx
from tests.loopback_hub import LoopbackHub
from tests.written_graphs import written_once

# Every run tries the same examples, so that results are reproducible.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

torch.set_num_threads(1)  # tiny models run slower on more threads

# Without such a device each seed is kept for later, with the stack that it was set from: a tenth of a tiny training.
for device in (torch.cuda, torch.xpu, torch.mtia):
    if not device.is_available():
        device.manual_seed_all = lambda seed: None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Two more than the number of cores, because tests of a service, and all that start processes, mostly wait."""
    return os.cpu_count() + 2


@pytest.fixture(scope="module", autouse=True)
def _little_garbage() -> None:
    """Keeps the garbage collector away from imported modules.

    Every training starts with a garbage collection, which would otherwise take half the time of a tiny training. This
    is repeated for each test module, because tests that compile or export import more.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _graphs_written_once(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder  # which all processes of this run share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx, "write_graph", written_once(onnx.write_graph, folder))
        yield


VOCAB_SIZE = 61
PAD, MASK = 0, 4

AUTO_CLASSES = {
    "classification": "AutoModelForSequenceClassification",
    "multi_label": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "token_classification": "AutoModelForTokenClassification",
    "question_answering": "AutoModelForQuestionAnswering",
    "multiple_choice": "AutoModelForMultipleChoice",
    "mlm": "AutoModelForMaskedLM",
    "causal": "AutoModelForCausalLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "image": "AutoModelForImageClassification",
    "audio": "AutoModelForAudioClassification",
}
HEADS = {head: getattr(transformers, name) for head, name in AUTO_CLASSES.items()}

CONFIGS_OF_HEADS = {
    "multi_label": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "regression": {"num_labels": 1},
    "token_classification": {"num_labels": 5},
    "image": {"num_labels": 3},
    "audio": {"num_labels": 3},
}
FAMILY_OF_HEAD = {"causal": "gpt2", "seq2seq": "bart", "image": "vit", "audio": "wav2vec2"}
"""Model families other than BERT, by head."""


def make_config(family: str, num_layers: int = 4, width: int = 16, dropout: float = 0.0, **overrides):
    """The config of a tiny model. Its outputs are far from uniform, so that losses are far from 0."""
    text = {"vocab_size": VOCAB_SIZE, "pad_token_id": PAD}
    sizes = {"hidden_size": width, "num_hidden_layers": num_layers, "num_attention_heads": 2}
    inner = {"intermediate_size": 2 * width}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    encoder = {**text, **sizes, **inner, **dropouts, "max_position_embeddings": 40, "initializer_range": 0.2}
    specials = {"bos_token_id": 1, "eos_token_id": 2}
    configs = {
        "bert": ("BertConfig", encoder),
        "roberta": ("RobertaConfig", encoder),
        "distilbert": (
            "DistilBertConfig",
            dict(
                **text,
                dim=width,
                n_layers=num_layers,
                n_heads=2,
                hidden_dim=2 * width,
                dropout=dropout,
                attention_dropout=dropout,
                seq_classif_dropout=dropout,
                qa_dropout=dropout,
                max_position_embeddings=40,
                initializer_range=0.2,
            ),
        ),
        "gpt2": (
            "GPT2Config",
            dict(
                **text,
                **specials,
                n_embd=width,
                n_layer=num_layers,
                n_head=2,
                n_positions=40,
                initializer_range=0.2,
                resid_pdrop=dropout,
                embd_pdrop=dropout,
                attn_pdrop=dropout,
            ),
        ),
        "llama": (
            "LlamaConfig",
            dict(**text, **specials, **sizes, **inner, num_key_value_heads=1, initializer_range=0.2),
        ),
        "opt": (
            "OPTConfig",
            dict(
                **text,
                **specials,
                **sizes,
                ffn_dim=2 * width,
                word_embed_proj_dim=width,
                max_position_embeddings=40,
                dropout=dropout,
                attention_dropout=dropout,
                init_std=0.2,
            ),
        ),
        "bart": (
            "BartConfig",
            dict(
                **text,
                **specials,
                d_model=width,
                encoder_layers=2,
                decoder_layers=num_layers,
                max_position_embeddings=40,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                init_std=0.2,
                encoder_ffn_dim=2 * width,
                decoder_ffn_dim=2 * width,
                dropout=dropout,
                attention_dropout=dropout,
                decoder_start_token_id=2,
                forced_eos_token_id=2,
            ),
        ),
        "t5": (
            "T5Config",
            dict(
                **text,
                d_model=width,
                d_ff=2 * width,
                d_kv=8,
                num_layers=2,
                num_decoder_layers=num_layers,
                num_heads=2,
                dropout_rate=dropout,
                decoder_start_token_id=PAD,
                initializer_factor=0.5,
            ),
        ),
        "vit": (
            "ViTConfig",
            dict(**sizes, **inner, **dropouts, image_size=8, patch_size=4, initializer_range=0.2),
        ),
        "resnet": ("ResNetConfig", {"embedding_size": 8, "hidden_sizes": [8, width], "depths": [1, num_layers]}),
        "wav2vec2": (
            "Wav2Vec2Config",
            dict(
                **sizes,
                **inner,
                conv_dim=[8, 8],
                conv_stride=[4, 2],
                conv_kernel=[8, 2],
                feat_extract_norm="layer",
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
                do_stable_layer_norm=True,
                hidden_dropout=dropout,
                attention_dropout=dropout,
                activation_dropout=dropout,
                feat_proj_dropout=dropout,
                final_dropout=dropout,
                layerdrop=0.0,
                mask_time_prob=0.0,
                initializer_range=0.2,
                classifier_proj_size=width,
            ),
        ),
    }
    name, options = configs[family]
    return getattr(transformers, name)(**{**options, **overrides})


def make_model(family: str, head: str, seed: int = 0, **overrides):
    """A tiny model with random weights, in evaluation mode."""
    torch.manual_seed(seed)
    return HEADS[head].from_config(make_config(family, **{**CONFIGS_OF_HEADS.get(head, {}), **overrides})).eval()


def make_text_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that turns `w5 w6` into the tokens 1, 5, 6, 2, where 1 and 2 mark the start and end of a text."""
    words = {"[PAD]": PAD, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "[MASK]": MASK}
    words |= {f"w{index}": index for index in range(5, VOCAB_SIZE)}
    tokenizer = Tokenizer(WordLevel(words, "[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    names = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]", "mask": "[MASK]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=38, **{f"{name}_token": token for name, token in names.items()}
    )


def make_texts(num_texts: int, seed: int = 0, longest: int = 20) -> list[str]:
    """Texts with 1 to `longest` words of that tokenizer."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (num_texts,), generator=generator).tolist()
    return [
        " ".join(f"w{index}" for index in torch.randint(5, VOCAB_SIZE, (length,), generator=generator).tolist())
        for length in lengths
    ]


def make_rows(head: str, num_rows: int = 16, seed: int = 0, num_labels: int | None = None) -> list[dict]:
    """Rows of different lengths, with labels. For heads per token, zero to all tokens of a row have a label."""
    generator = torch.Generator().manual_seed(seed)
    num_labels = num_labels or CONFIGS_OF_HEADS.get(head, {}).get("num_labels", 2)

    def integers(low: int, high: int, size: int) -> list[int]:
        return torch.randint(low, high, (size,), generator=generator).tolist()

    def text() -> dict[str, list[int]]:
        (length,) = integers(3, 20, 1)
        return {"input_ids": integers(5, VOCAB_SIZE, length), "attention_mask": [1] * length}

    rows = []
    for index in range(num_rows):
        if head == "image":
            rows.append({"pixel_values": torch.randn(3, 8, 8, generator=generator), "labels": integers(0, 3, 1)[0]})
            continue
        if head == "audio":
            (length,) = integers(100, 200, 1)
            values = torch.randn(length, generator=generator).tolist()
            rows.append({"input_values": values, "attention_mask": [1] * length, "labels": integers(0, 3, 1)[0]})
            continue
        if head == "multiple_choice":
            choices = [text() for _ in range(3)]
            row = {name: [choice[name] for choice in choices] for name in ("input_ids", "attention_mask")}
            rows.append({**row, "labels": integers(0, 3, 1)[0]})
            continue
        row = text()
        length = len(row["input_ids"])
        with_label = (torch.rand(length, generator=generator) < index / (num_rows - 1)).tolist()
        if head == "classification":
            row["labels"] = integers(0, num_labels, 1)[0]
        elif head == "multi_label":
            row["labels"] = [float(label) for label in integers(0, 2, num_labels)]
        elif head == "regression":
            row["labels"] = torch.randn((), generator=generator).item()
        elif head == "token_classification":
            classes = integers(0, num_labels, length)
            row["labels"] = [label if with_ else -100 for label, with_ in zip(classes, with_label, strict=True)]
        elif head == "question_answering":
            # Some answers are not in the text: they lie after its truncated end, or are unknown (-100).
            row["start_positions"] = [*range(length), -100, 50][integers(0, length + 2, 1)[0]]
            row["end_positions"] = [*range(length), -100, 50][integers(0, length + 2, 1)[0]]
        elif head in ("mlm", "causal"):
            tokens = row["input_ids"]
            row["labels"] = [token if with_ else -100 for token, with_ in zip(tokens, with_label, strict=True)]
            if head == "mlm":
                row["input_ids"] = [MASK if with_ else token for token, with_ in zip(tokens, with_label, strict=True)]
        elif head == "seq2seq":
            row["labels"] = integers(5, VOCAB_SIZE, integers(0, 12, 1)[0]) if index > 0 else []
        rows.append(row)
    return rows


FILL = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0, "labels": -100, "input_values": 0.0}


def collate(rows: list[dict], length: int | None = None) -> dict[str, torch.Tensor]:
    """Pads to the longest row, or to `length`."""

    def pad(name: str, lists: list[list]) -> torch.Tensor:
        longest = length or max(1, *(len(values) for values in lists))
        return torch.tensor([values + [FILL[name]] * (longest - len(values)) for values in lists])

    batch = {}
    for name, first in rows[0].items():
        values = [row[name] for row in rows]
        if isinstance(first, torch.Tensor):
            batch[name] = torch.stack(values)
        elif not isinstance(first, list):
            batch[name] = torch.tensor(values)
        elif first and isinstance(first[0], list):
            padded = pad(name, [choice for row in values for choice in row])
            batch[name] = padded.unflatten(0, (len(rows), len(first)))
        else:
            batch[name] = pad(name, values)
    return batch


@pytest.fixture(params=["bert", "roberta", "distilbert"])
def family(request) -> str:
    return request.param


@pytest.fixture(params=["classification", "mlm"])
def head(request) -> str:
    return request.param


@pytest.fixture(params=list(HEADS))
def every_head(request) -> str:
    return request.param


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A local server in place of the real Hub, with a token that has write access, and an empty cache."""
    with LoopbackHub() as hub:
        constants = {
            "ENDPOINT": hub.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None, raising=False)  # it keeps the endpoint
        monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        yield hub
