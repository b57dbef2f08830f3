"""A teacher writes targets once: the texts, what is stored, and errors."""

import datasets
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import DataCollatorForSeq2Seq, GenerationConfig, MBart50Tokenizer

from hf_distill import add_teacher_texts, encode_text_pairs, make_student
from hf_distill.training.teacher import texts as teacher_texts
from tests.conftest import make_model, make_text_tokenizer, make_texts

TOKENIZER = make_text_tokenizer()
SOURCES = Dataset.from_dict({"source": make_texts(9)})
OPTIONS = {"max_target_length": 8, "num_beams": 2, "batch_size": 4}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def make_teacher(family="bart"):
    layers = {"num_decoder_layers": 2} if family == "t5" else {}
    return make_model(family, "seq2seq", **layers)


def one_by_one(teacher, texts, **options):
    """The texts without batches."""
    written = []
    for text in texts:
        batch = TOKENIZER(text, return_tensors="pt").to(teacher.device)
        generated = teacher.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
        written.append(TOKENIZER.decode(generated[0], skip_special_tokens=True).strip())
    return written


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_the_texts_are_those_of_beam_search(family):
    teacher = make_teacher(family).train()
    written = add_teacher_texts(SOURCES, teacher, TOKENIZER, **OPTIONS)
    assert written["source"][:] == SOURCES["source"][:]
    assert teacher.training
    expected = one_by_one(teacher.eval(), SOURCES["source"], num_beams=2, max_new_tokens=8)
    assert written["target"][:] == expected
    assert len(set(expected)) >= 4


def test_the_generation_config_holds_unless_an_option_is_given():
    teacher = make_teacher()
    teacher.generation_config = GenerationConfig(
        max_length=7,
        num_beams=3,
        do_sample=True,
        repetition_penalty=3.0,
        eos_token_id=2,
        pad_token_id=0,
        decoder_start_token_id=2,
    )
    written = add_teacher_texts(SOURCES, teacher, TOKENIZER, num_beams=1)["target"][:]
    assert written == one_by_one(teacher, SOURCES["source"], num_beams=1, do_sample=False)


def test_a_prefix_and_truncation():
    written = add_teacher_texts(SOURCES, make_teacher(), TOKENIZER, source_prefix="w30 w31 ", max_length=6, **OPTIONS)
    texts = [" ".join(f"w30 w31 {text}".split()[:4]) for text in SOURCES["source"]]
    assert written["target"][:] == one_by_one(make_teacher(), texts, num_beams=2, max_new_tokens=8)


def test_a_repeated_call_loads_and_an_interrupted_one_continues(tmp_path, monkeypatch):
    monkeypatch.setattr(teacher_texts, "BATCHES_PER_SHARD", 1)
    teacher, seen = make_teacher(), []
    generate = teacher_texts.TextWriter.generate

    def interrupted(self, decode, **inputs):
        if len(seen) == 1:
            raise KeyboardInterrupt
        seen.append(len(inputs["input_ids"]))
        return generate(self, decode, **inputs)

    monkeypatch.setattr(teacher_texts.TextWriter, "generate", interrupted)
    folder = tmp_path / "texts"
    with pytest.raises(KeyboardInterrupt):
        add_teacher_texts(SOURCES, teacher, TOKENIZER, output_dir=folder, **OPTIONS)
    seen.clear()
    seen += ["more than 1"] * 4
    written = add_teacher_texts(SOURCES, teacher, TOKENIZER, output_dir=folder, **OPTIONS)
    assert seen[4:] == [4, 1]  # of three shards, one was there
    assert add_teacher_texts(SOURCES, teacher, TOKENIZER, output_dir=folder, **OPTIONS)[:] == written[:]
    assert len(seen) == 6
    monkeypatch.setattr(teacher_texts.TextWriter, "generate", generate)
    assert add_teacher_texts(SOURCES, teacher, TOKENIZER, **OPTIONS)[:] == written[:]
    with pytest.raises(ValueError, match=r"has texts of another options \(options was .*'num_beams': 2"):
        add_teacher_texts(SOURCES, teacher, TOKENIZER, output_dir=folder, **{**OPTIONS, "num_beams": 3})


def test_splits_and_another_column():
    both = DatasetDict({"train": SOURCES.select(range(3)), "test": SOURCES.select(range(3, 5))})
    written = add_teacher_texts(both, make_teacher(), TOKENIZER, target_column="summary", **OPTIONS)
    assert written["test"].column_names == ["source", "summary"]
    assert written["train"].num_rows == 3


def test_a_student_learns_from_them_without_labels(make_trainer):
    teacher = make_teacher()
    rows = encode_text_pairs(add_teacher_texts(SOURCES, teacher, TOKENIZER, **OPTIONS), TOKENIZER, 20, 10)
    student = make_student(teacher, num_layers={"decoder": 2})
    collator = DataCollatorForSeq2Seq(TOKENIZER, model=student)
    trainer = make_trainer(student, teacher, rows, data_collator=collator, max_steps=8, learning_rate=1e-2)
    trainer.train()
    losses = [log["loss_task"] for log in trainer.state.log_history if "loss_task" in log]
    assert losses[-1] < 0.8 * losses[0]


def test_languages_of_the_tokenizer(monkeypatch):
    tokenizer = MBart50Tokenizer()
    tokenizer.src_lang, tokenizer.tgt_lang = "en_XX", "de_DE"
    tokenizer.model_max_length = 20
    german = tokenizer.convert_tokens_to_ids("de_DE")
    teacher = make_model("bart", "seq2seq", vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    generate, seen = teacher.generate, []
    monkeypatch.setattr(teacher, "generate", lambda **options: seen.append(generate(**options)) or seen[-1])
    add_teacher_texts(SOURCES.select(range(2)), teacher, tokenizer, **OPTIONS)
    assert seen[0][:, 1].tolist() == [german, german]
    assert teacher.generation_config.forced_bos_token_id is None


def test_empty_texts_are_counted(monkeypatch):
    warned = []
    monkeypatch.setattr(teacher_texts.logger, "warning", warned.append)
    teacher = make_teacher()
    teacher.generate = lambda **options: torch.tensor([[2, 2]]).expand(len(options["input_ids"]), -1)
    add_teacher_texts(SOURCES, teacher, TOKENIZER, **OPTIONS)
    assert warned == ["The teacher wrote nothing for 9 of 9 sources: remove these rows."]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_column": "text"}, "The dataset has no column 'text', only source"),
        ({"target_column": "source"}, "The dataset already has the column 'source'"),
        ({"num_beams": 0}, "num_beams=0 must be 1 or more"),
        ({"batch_size": 0}, "batch_size=0 must be 1 or more"),
        ({"dtype": "int8"}, "dtype='int8' should be one of"),
        ({"max_target_length": None}, "generation config of BartForConditionalGeneration has no maximum length"),
        ({"max_length": 100}, "max_length=100 exceeds the model's 40 tokens"),
        ({"dataset": SOURCES.select([])}, "The dataset is empty"),
        ({"dataset": Dataset.from_dict({"source": ["w5", " "]})}, "Row 2 has no text in the column 'source'"),
        ({"teacher": make_model("gpt2", "causal")}, "A GPT2LMHeadModel does not write targets for source texts"),
    ],
)
def test_errors(change, message):
    given = {"dataset": SOURCES, "teacher": make_teacher(), "tokenizer": TOKENIZER, **OPTIONS, **change}
    with pytest.raises(ValueError, match=message):
        add_teacher_texts(**given)


def test_wrong_types():
    with pytest.raises(TypeError, match="teacher should be a transformers model, but is a str"):
        add_teacher_texts(SOURCES, "teacher", TOKENIZER)
    with pytest.raises(TypeError, match=r"dataset should be a datasets.Dataset, but is a list"):
        add_teacher_texts([{"source": "a"}], make_teacher(), TOKENIZER)


def test_the_teacher_writes_in_the_dtype(monkeypatch):
    """And is as before afterwards."""
    teacher, used = make_teacher(), set()
    generate = type(teacher).generate
    monkeypatch.setattr(type(teacher), "generate", lambda self, **own: used.add(self.dtype) or generate(self, **own))
    add_teacher_texts(SOURCES, teacher, TOKENIZER, dtype="bfloat16", **OPTIONS)
    assert used == {torch.bfloat16}
    assert teacher.dtype == torch.float32
