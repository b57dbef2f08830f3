"""The model card that the trainer writes: known facts, in metadata that the Hub accepts."""

import logging

import datasets
import pytest
from datasets import Dataset
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from hf_distill import __version__, add_teacher_targets, make_student, trim_vocabulary
from hf_distill.training.publishing.card import data_of, last_results
from tests.conftest import FAMILY_OF_HEAD, HEADS, make_model, make_rows, make_text_tokenizer, make_texts

REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"


@pytest.fixture
def teacher(tmp_path):
    make_model("bert", "classification").save_pretrained(tmp_path / "teacher")
    return AutoModelForSequenceClassification.from_pretrained(tmp_path / "teacher")


def on_hub(teacher, name="google-bert/bert-base-uncased"):
    """Marks a model as loaded from the Hub."""
    teacher.name_or_path = teacher.config._name_or_path = name
    teacher.config._commit_hash = REVISION
    return teacher


def make_dataset():
    return Dataset.from_dict({**make_text_tokenizer()(make_texts(8)), "labels": [0, 1] * 4})


@pytest.fixture
def card_of(make_trainer, tmp_path):
    """The metadata and the text of a trainer's card, read back from disk."""

    def save(teacher, student=None, rows=None, card=None, steps=1, **options):
        options = {"alpha_cos": 0.0, "max_steps": steps, "data_collator": None, **options}
        trainer_options = {"processing_class": make_text_tokenizer(), **options.pop("trainer_options", {})}
        rows = make_dataset() if rows is None else rows
        student = make_student(teacher) if student is None else student
        trainer = make_trainer(student, teacher, rows, rows, trainer_options=trainer_options, **options)
        if steps:
            trainer.train()
            trainer.evaluate()
        trainer.save_model()
        if card is not None:
            trainer.create_model_card(**card)
        card = ModelCard.load(tmp_path / "out" / "README.md")
        return card.data, card.text

    return save


def test_what_is_known(card_of, teacher, tmp_path):
    metrics = {"compute_metrics": lambda evaluated: {"accuracy": 0.75}}
    data, text = card_of(
        teacher, trainer_options=metrics, per_device_train_batch_size=4, gradient_accumulation_steps=2, alpha_cos=0.5
    )
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-classification"
    assert data.tags == ["hf_distill", "distillation"]
    assert text.startswith("\n# out\n")
    rows = [
        "| teacher | `teacher` |",
        "| layers kept | 0, 2 |",
        "| layer selection | alternate |",
        "| temperature | 2 |",
        "| rows | 8 |",
        "| steps | 1 |",
        "| epochs | 1 |",
        "| batch size | 8 (4 rows x 1 processes x 2 accumulated) |",
        "| learning rate | 5e-05, linear, 0 warm-up steps |",
        "| precision | float32 |",
        "| seed | 42 |",
        "| eval_accuracy | 0.7500 |",
        f"- hf_distill {__version__}",
        f"- datasets {datasets.__version__}",
        'model = AutoModelForSequenceClassification.from_pretrained("path/to/this/folder")',
        'load_predictor("onnx").predict(["..."])',
        "@article{sanh2019distilbert",
        "@article{hinton2015distilling",
    ]
    assert [row for row in rows if row not in text] == []
    assert "    loss = 5 * L_kl + 2 * L_task + 0.5 * L_cos\n" in text
    assert "compared positions" not in text  # of a head with one row per example
    # A folder is not a Hub name, a teacher without a card has no licence, and these rows have no name.
    assert (data.base_model, data.get("base_model_relation"), data.license, data.eval_results) == (None,) * 4
    assert str(tmp_path) not in str(data) + text


def test_teacher_on_the_hub(card_of, teacher):
    data, text = card_of(on_hub(teacher))
    assert data.base_model == "google-bert/bert-base-uncased"
    assert data["base_model_relation"] == "finetune"
    assert f"trained by knowledge distillation from `google-bert/bert-base-uncased` at revision `{REVISION}`" in text
    assert f"| cut from | `google-bert/bert-base-uncased` at revision `{REVISION}` |" in text


@pytest.mark.parametrize("is_cut", [True, False])
def test_trimmed_vocabulary(card_of, teacher, is_cut):
    tokenizer = make_text_tokenizer()
    model = make_student(on_hub(teacher)) if is_cut else on_hub(teacher)
    trimmed = trim_vocabulary(model, tokenizer, keep=len(tokenizer) - 9)
    rows = Dataset.from_dict({**trimmed.tokenizer(make_texts(8)), "labels": [0, 1] * 4})
    _, text = card_of(teacher, trimmed.model, rows, trainer_options={"processing_class": trimmed.tokenizer})
    assert f"| cut from | `google-bert/bert-base-uncased` at revision `{REVISION}` |" in text
    assert f"| tokens kept | {len(tokenizer) - 9} of {len(tokenizer)} |" in text
    assert ("| layers kept | 0, 2 |" in text) == is_cut


def test_several_teachers(card_of, teacher, tmp_path):
    make_model("bert", "classification", seed=1).save_pretrained(tmp_path / "other")
    other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "other")
    for folder, license in (("teacher", "mit"), ("other", "apache-2.0")):
        (tmp_path / folder / "README.md").write_text(f"---\nlicense: {license}\n---\n# Teacher\n")
    student = make_student(teacher)
    data, text = card_of([teacher, other], student, teacher_weights=[2.0, 1.0])
    assert "trained by knowledge distillation from `teacher` and `other`." in text
    rows = ["| teacher 1 | `teacher` |", "| teacher 2 | `other` |", "| weights of the teachers | 0.667, 0.333 |"]
    rows.append("| averaged over the teachers | probabilities |")
    assert [row for row in rows if row not in text] == []
    assert data.license is None  # they have different ones
    (tmp_path / "other" / "README.md").write_text("---\nlicense: mit\n---\n# Teacher\n")
    data, _ = card_of([on_hub(teacher), on_hub(other, "some/other")], student, card={"license": "mit"})
    assert data.base_model == ["google-bert/bert-base-uncased", "some/other"]
    assert str(tmp_path) not in str(data) + text


def test_model_index(card_of, teacher, hub):
    rows = make_dataset()
    rows.info.dataset_name, rows.info.config_name, rows._split = "imdb", "plain_text", datasets.Split.TEST
    data, _ = card_of(
        on_hub(teacher),
        rows=rows,
        card={"dataset_tags": "stanfordnlp/imdb", "language": "en", "license": "mit", "tags": "film"},
        trainer_options={"compute_metrics": lambda evaluated: {"accuracy": 0.75, "f1": float("nan")}},
    )
    (result,) = data.eval_results  # only numbers that are not losses
    assert (result.task_type, result.dataset_type, result.dataset_name) == (
        "text-classification",
        "stanfordnlp/imdb",
        "imdb",
    )
    assert (result.dataset_config, result.dataset_split) == ("plain_text", "test")
    assert (result.metric_type, result.metric_value) == ("accuracy", 0.75)
    assert (data.datasets, data.language, data.license) == (["stanfordnlp/imdb"], "en", "mit")
    assert data.tags == ["hf_distill", "distillation", "film"]


def test_metadata_is_valid(card_of, teacher, hub, tmp_path):
    rows = make_dataset()
    card_of(on_hub(teacher), rows=rows, card={"dataset": "reviews", "dataset_tags": ["me/reviews"]})
    readme = tmp_path / "out" / "README.md"
    ModelCard.load(readme).validate()
    assert ("POST", "/api/validate-yaml") in hub.requests
    wrong = readme.read_text().replace("base_model_relation: finetune", "base_model_relation: distilled")
    with pytest.raises(ValueError, match="base_model_relation"):
        ModelCard(wrong).validate()


def test_data_set_in_the_cache_of_the_hub(tmp_path):
    """`load_dataset` names the folder after the repository, the configuration, the version and the commit."""
    rows = make_dataset()
    rows.info.dataset_name, rows.info.config_name, rows._split = "imdb", "plain_text", datasets.Split.TRAIN
    folder = tmp_path / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / REVISION
    folder.mkdir(parents=True)
    rows.map(lambda row: row, cache_file_name=str(folder / "imdb-train.arrow"))
    known = data_of(rows.map(lambda row: row, cache_file_name=str(folder / "imdb-train.arrow")))
    assert (known.hub_name, known.revision, known.config, known.split, known.rows) == (
        "stanfordnlp/imdb",
        REVISION,
        "plain_text",
        "train",
        8,
    )
    rows.info.dataset_name = "csv"  # which is a format
    assert data_of(rows).name is None
    assert data_of([1, 2]).rows == 2
    assert data_of(None).rows is None


def test_licence_beside_the_teacher(card_of, teacher, tmp_path):
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: other\nlicense_name: house\n---\n# Teacher\n")
    data, _ = card_of(teacher)
    assert (data.license, data["license_name"]) == ("other", "house")


def test_licence_on_the_hub(card_of, teacher, hub, make_trainer):
    card = b"---\nlicense: other\nlicense_link: LICENSE\n---\n# Teacher\n"
    hub.repos["google-bert/bert-base-uncased"] = [(REVISION, "", {"README.md": card})]
    data, _ = card_of(on_hub(teacher))
    assert data.license == "other"
    assert data.get("license_link") is None  # there is no such file next to the student
    assert hub.requests.count(("HEAD", f"/google-bert/bert-base-uncased/resolve/{REVISION}/README.md")) == 1


def test_licence_that_cannot_be_had(card_of, teacher, hub, caplog):
    caplog.set_level(logging.INFO, "hf_distill")
    hub.__exit__()
    data, _ = card_of(on_hub(teacher))
    assert data.license is None
    assert "The licence of google-bert/bert-base-uncased is unknown" in caplog.text


def test_stored_teacher(card_of, teacher):
    rows = add_teacher_targets(make_dataset(), on_hub(teacher), make_text_tokenizer())
    data, text = card_of(None, make_student(teacher), rows)
    assert data.base_model == "google-bert/bert-base-uncased"
    assert "trained by knowledge distillation from `google-bert/bert-base-uncased`" in text


def test_no_teacher(card_of, teacher):
    data, text = card_of(None, make_model("bert", "classification", seed=1), alpha_kl=0.0)
    assert "trained on labels, without a teacher" in text
    assert "    loss = 2 * L_task\n" in text
    assert "temperature" not in text
    assert "cut from" not in text
    assert data.base_model is None


def test_not_trained_yet(card_of, teacher):
    _, text = card_of(teacher, steps=0)
    assert "was not trained in this run" in text
    assert "How it was trained" not in text
    assert "Not evaluated yet." in text


def test_a_training_of_no_step_writes_no_card(make_trainer, tmp_path, caplog, teacher):
    """Its arguments are not those that trained the weights."""
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "alpha_cos": 0.0}
    first = make_trainer(make_student(teacher), teacher, make_rows("classification"), **options)
    first.train()
    first.save_model()
    readme = tmp_path / "out" / "README.md"
    card = readme.read_text()
    assert "| learning rate | 5e-05," in card

    second = make_trainer(
        make_student(teacher), teacher, make_rows("classification"), **{**options, "learning_rate": 1e-3}
    )
    second.train(resume_from_checkpoint=True)
    second.save_model()
    second.create_model_card(language="en")
    assert readme.read_text() == card
    assert "No training step was made, so" in caplog.text
    readme.unlink()
    second.save_model(str(tmp_path / "elsewhere"))
    assert (tmp_path / "elsewhere" / "config.json").exists()
    assert not (tmp_path / "elsewhere" / "README.md").exists()

    second.args.max_steps = 3
    second.train(resume_from_checkpoint=True)
    second.save_model()
    assert "| steps | 3 |" in readme.read_text()


def test_no_epochs_no_card(make_trainer, tmp_path, teacher):
    trainer = make_trainer(make_student(teacher), teacher, make_rows("classification"), num_train_epochs=0)
    trainer.train()
    trainer.save_model()
    assert not (tmp_path / "out" / "README.md").exists()


@pytest.mark.parametrize("head", HEADS)
def test_every_head(make_trainer, tmp_path, head):
    """The card names the model class of the head, and mentions export only if the model can be exported."""
    family = FAMILY_OF_HEAD.get(head, "bert")
    trainer = make_trainer(make_model(family, head), make_model(family, head, seed=1), make_rows(head), alpha_cos=0.0)
    trainer.processing_class = make_text_tokenizer()
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"= {HEADS[head].__name__}.from_pretrained(" in text
    assert ("hf-distill export" in text) == (head not in ("multiple_choice", "seq2seq", "image", "audio"))


def test_adapters_and_what_they_amount_to(make_trainer, tmp_path, teacher):
    base = make_model("bert", "classification", seed=1)
    base.name_or_path = base.config._name_or_path = "someone/base"
    student = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    trainer = make_trainer(student, teacher, make_rows("classification"))
    for _ in range(2):  # PEFT writes into the card that is there
        trainer.save_model()
        card = ModelCard.load(tmp_path / "out" / "README.md")
        assert (card.data.library_name, card.data.base_model) == ("peft", "someone/base")
        assert card.data["base_model_relation"] == "adapter"
        assert "- peft " in card.text
    trainer.save_merged_model(str(tmp_path / "merged"))
    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("transformers", None)


def test_adapter_of_a_student_that_was_cut_here(make_trainer, tmp_path, teacher):
    """The student's base model is not the teacher, although it still has the teacher's name."""
    student = get_peft_model(make_student(on_hub(teacher)), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    make_trainer(student, teacher, make_rows("classification")).save_model()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model is None


def test_what_a_card_does_not_take(make_trainer, teacher):
    trainer = make_trainer(make_student(teacher), teacher, make_rows("classification"))
    with pytest.raises(TypeError, match="unexpected keyword argument 'licence'"):
        trainer.push_to_hub(licence="mit")
    with pytest.raises(TypeError, match="unexpected keyword argument 'licence'"):
        trainer.create_model_card(licence="mit")


def test_card_of_a_person_is_kept(make_trainer, tmp_path, caplog, teacher):
    trainer = make_trainer(make_student(teacher), teacher, make_rows("classification"))
    trainer.save_model()
    readme = tmp_path / "out" / "README.md"
    trainer.save_model()
    assert "was not written by hf_distill" not in caplog.text  # its own
    readme.write_text(readme.read_text() + "And this I know of it.\n")
    edited = readme.read_text()
    trainer.save_model()
    assert readme.read_text() == edited
    assert f"{readme} was not written by hf_distill or was edited since, so it is kept" in caplog.text


def test_none_in_checkpoints(make_trainer, tmp_path, teacher):
    trainer = make_trainer(
        make_student(teacher), teacher, make_rows("classification"), save_strategy="epoch", max_steps=1
    )
    trainer.train()
    assert not (tmp_path / "out" / "checkpoint-1" / "README.md").exists()


def test_results_are_of_the_weights_that_are_saved(make_trainer, teacher):
    trainer = make_trainer(make_student(teacher), teacher, make_rows("classification"), load_best_model_at_end=False)
    first, second = {"eval_loss": 1.0, "eval_runtime": 3.0, "step": 1}, {"eval_loss": 2.0, "step": 2}
    trainer.state.log_history = [{"loss": 5.0, "step": 1}, first, second, {"train_runtime": 9.0, "step": 2}]
    assert last_results(trainer) == {"eval_loss": 2.0}
    trainer.args.load_best_model_at_end, trainer.state.best_global_step = True, 1
    assert last_results(trainer) == {"eval_loss": 1.0}
    trainer.state.log_history.append({"test_loss": 4.0, "step": 2})
    assert last_results(trainer) == {"eval_loss": 1.0, "test_loss": 4.0}
