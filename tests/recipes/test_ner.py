"""The recipe's smoke run: paragraphs of Python's documentation, tagged by a rule, on tiny models."""

import json
from pathlib import Path

import datasets
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import WordPieceTrainer
from transformers import PreTrainedTokenizerFast

from hf_distill import load_predictor
from hf_distill.cli import main
from recipes.ner import smoke_data
from tests.conftest import make_model

RECIPE = Path(smoke_data.__file__).parent
CONFIG, SMOKE = RECIPE / "config.yaml", RECIPE / "smoke.yaml"
SHORTER = ["--disable_tqdm", "true", "--num_train_epochs", "1"]


def save_pretrained(folder):
    specials = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokenizer = Tokenizer(WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    trainer = WordPieceTrainer(vocab_size=600, special_tokens=[*specials.values()])
    tokenizer.train_from_iterator(smoke_data.paragraphs(), trainer)
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {f"{name}_token": token for name, token in specials.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=40, **named).save_pretrained(folder)
    make_model("bert", "mlm", num_layers=2, width=32, vocab_size=tokenizer.get_vocab_size()).save_pretrained(folder)


def results(folder):
    return json.loads((Path(folder) / "test_results.json").read_text())


def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    smoke_data.main([])
    save_pretrained("pretrained")
    configs = ["train", str(CONFIG), str(SMOKE), *SHORTER]
    as_teacher = {"model_name_or_path": "pretrained", "output_dir": "out/teacher"}
    without = ["--teacher_model_name_or_path", "null", "--num_layers", "null", "--temperature", "2.0"]
    options = [word for name, value in as_teacher.items() for word in (f"--{name}", value)]
    assert main([*configs, *without, *options]) == 0
    assert main(configs) == 0
    assert results("out/teacher")["test_f1"] > 0.7
    assert results("out/student")["test_f1"] > 0.6
    assert {"test_f1_METHOD", "test_f1_PEP", "test_f1_VERSION"} <= results("out/student").keys()
    (found,) = load_predictor("out/student").predict(["The method __exit__ is called at the end of the block."])
    assert [(own["label"], own["text"]) for own in found] == [("METHOD", "__exit__")]


def test_the_data_are_tagged_by_the_rule():
    texts = smoke_data.paragraphs()
    assert len(texts) == len(set(texts)) > 300
    text = "See __init__ in PEP 8 and Python 3.11, version 3.2."
    found = {(own["label"], text[own["start"] : own["end"]]) for own in smoke_data.entities_of(text)}
    assert found == {("METHOD", "__init__"), ("PEP", "PEP 8"), ("VERSION", "3.11"), ("VERSION", "3.2")}


def test_the_smoke_run_changes_models_data_and_sizes_only():
    changed = yaml.safe_load(SMOKE.read_text()).keys()
    assert {"learning_rate", "num_train_epochs", "use_cpu", "bf16", "spans_column"} <= changed
    assert not {"alpha_kl", "alpha_task", "alpha_cos", "metric_for_best_model", "eval_strategy"} & changed
