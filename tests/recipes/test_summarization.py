"""The recipe's smoke run: documentation and its first lines, on tiny models."""

import json
from pathlib import Path

import datasets
import pytest
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from hf_distill import load_predictor
from hf_distill.cli import main
from recipes.summarization import smoke_data
from tests.conftest import make_model

RECIPE = Path(smoke_data.__file__).parent
CONFIG, TEACHER, SMOKE = (RECIPE / f"{name}.yaml" for name in ("config", "teacher", "smoke"))
SPECIALS = {"pad": "<pad>", "bos": "<s>", "eos": "</s>", "unk": "<unk>"}


def write_rows(folder, monkeypatch, num_train=48, num_test=6):
    """The documentation of NumPy's top level alone: others take seconds to import."""
    import numpy

    from recipes.rerank import smoke_data as documentation

    monkeypatch.setattr(documentation, "_modules", lambda: [numpy])
    smoke_data.write_data(folder, num_train, num_test)
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def save_pretrained(folder, texts):
    tokenizer = Tokenizer(BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, BpeTrainer(vocab_size=400, special_tokens=[*SPECIALS.values()]))
    tokenizer.post_processor = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    named = {f"{name}_token": token for name, token in SPECIALS.items()}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **named).save_pretrained(folder)
    sizes = {"width": 32, "num_layers": 2, "max_position_embeddings": 130}
    make_model("bart", "seq2seq", vocab_size=tokenizer.get_vocab_size(), **sizes).save_pretrained(folder)


@pytest.mark.long
def test_smoke(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    rows = write_rows(Path("data"), monkeypatch)
    save_pretrained("out/teacher", [text for row in rows for text in row.values()])
    options = ["--disable_tqdm", "true", "--max_steps", "2"]
    assert main(["train", str(CONFIG), str(SMOKE), *options]) == 0
    student = AutoModelForSeq2SeqLM.from_pretrained("out/student")
    assert (student.config.encoder_layers, student.config.decoder_layers) == (2, 1)
    measured = json.loads(Path("out/student/test_results.json").read_text())
    assert {"test_rouge1", "test_rougeLsum", "test_loss_task"} <= measured.keys()
    (written,) = load_predictor("out/student").predict([rows[0]["source"]])
    assert isinstance(written["text"], str)

    teacher = ["--teacher_model_name_or_path", "out/teacher", "--output_dir", "out/taught", "--targets", "both"]
    assert main(["train", str(CONFIG), str(TEACHER), str(SMOKE), *teacher, *options]) == 0
    assert json.loads(Path("out/taught/test_results.json").read_text())["test_loss_kl"] > 0


def test_the_first_paragraph_is_the_target(tmp_path, monkeypatch):
    rows = write_rows(tmp_path, monkeypatch)
    assert len(rows) == 48
    assert len({row["target"] for row in rows}) == 48
    assert all(len(row["source"].split()) >= 20 for row in rows)


def test_the_smoke_run_changes_models_data_and_sizes_only():
    changed = yaml.safe_load(SMOKE.read_text()).keys()
    assert not {name for name in changed if name.startswith("alpha_")}
    assert not yaml.safe_load(CONFIG.read_text()).keys() & {"teacher_model_name_or_path", "share_encoder"}
