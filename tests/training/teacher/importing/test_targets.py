"""Imported targets: where they come from, which teacher they name, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, load_from_disk
from transformers import DataCollatorWithPadding

from hf_distill import add_teacher_targets, import_teacher_targets
from hf_distill.training.teacher.columns import source_of
from tests.conftest import make_model, make_rows, make_text_tokenizer
from tests.training.teacher.test_targets import losses, make_dataset, train

TOKENIZER = make_text_tokenizer()
LABELS = ["LABEL_0", "LABEL_1"]
OPTIONS = {"format": "probabilities", "teacher": "a program", "labels": LABELS}


def scores(num_rows=16, seed=0):
    yes = np.random.default_rng(seed).uniform(0.01, 0.99, num_rows)
    return np.stack([yes, 1 - yes], axis=1).tolist()


def student():
    return make_model("bert", "classification", seed=3, num_layers=2)


def test_the_teacher_is_named(make_trainer, tmp_path):
    """In the rows, in a checkpoint and on the card."""
    settings = {"prompt": "good or bad?", "temperature": 0.0}
    rows = import_teacher_targets(
        make_dataset("classification"), scores(), **OPTIONS, revision="2024-08-06", settings=settings
    )
    source = source_of(rows)
    assert (source.teacher, source.revision, source.dtype) == ("a program", "2024-08-06", "imported")
    assert source.settings == settings
    assert str(source) == f"'a program' (fingerprint {source.fingerprint}, imported)"
    options = {"alpha_cos": 0.0, "save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    trainer = make_trainer(student(), None, rows, **options)
    trainer.train()
    state = json.loads((Path(trainer.args.output_dir) / "checkpoint-2" / "distillation_state.json").read_text())
    assert state["teacher"] == "a program"
    assert state["teacher_fingerprint"] == source.fingerprint
    trainer.save_model()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "trained by knowledge distillation from `a program` at revision `2024-08-06`" in card
    assert "| teacher settings | prompt: good or bad?, temperature: 0.0 |" in card
    assert "base_model" not in card


def test_a_teacher_on_the_hub_is_linked(make_trainer):
    options = {**OPTIONS, "teacher": "meta-llama/Llama-3.1-70B"}
    rows = import_teacher_targets(make_dataset("classification"), scores(), **options)
    trainer = make_trainer(student(), None, rows, alpha_cos=0.0, max_steps=1)
    trainer.train()
    trainer.save_model()
    assert "base_model: meta-llama/Llama-3.1-70B" in (Path(trainer.args.output_dir) / "README.md").read_text()


def test_no_path_is_told(tmp_path):
    (tmp_path / "my-teacher").mkdir()
    for path in (tmp_path / "my-teacher", tmp_path / "was-here"):
        rows = import_teacher_targets(make_dataset("classification"), scores(), **{**OPTIONS, "teacher": str(path)})
        assert source_of(rows).teacher == path.name


def test_the_fingerprint_is_of_the_targets():
    rows = make_dataset("classification")
    ours, again = (import_teacher_targets(rows, scores(), **OPTIONS) for _ in range(2))
    assert source_of(ours) == source_of(again)
    assert ours._fingerprint == again._fingerprint
    assert ours[:] == again[:]
    changed = scores()
    changed[7] = [0.4, 0.6]
    other = import_teacher_targets(rows, changed, **OPTIONS)
    assert source_of(other).fingerprint != source_of(ours).fingerprint


def write_json_lines(file, values):
    file.write_text("".join(f"{json.dumps(value)}\n" for value in values))


def test_files_of_every_kind(tmp_path):
    """Parts are read in the order of their numbers."""
    rows, given = make_dataset("classification", num_rows=24), scores(24)
    expected = import_teacher_targets(rows, given, **OPTIONS)[:]
    named = [dict(zip(LABELS, own, strict=True)) for own in given]
    for folder in ("parquet", "lines", "named"):
        (tmp_path / folder).mkdir()
    for part in range(12):
        own = given[2 * part : 2 * part + 2]
        Dataset.from_dict({"scores": own}).to_parquet(tmp_path / "parquet" / f"data_{part}.parquet")
        write_json_lines(tmp_path / "lines" / f"data_{part}.jsonl", own)
        write_json_lines(tmp_path / "named" / f"data_{part}.jsonl", named[2 * part : 2 * part + 2])
    (tmp_path / "all.json").write_text(json.dumps([{"text": "w5", "scores": own} for own in given]))
    write_json_lines(tmp_path / "lines.json", [{"scores": own} for own in given])
    for targets, column in (
        (tmp_path / "parquet", None),
        (str(tmp_path / "parquet" / "*.parquet"), "scores"),
        (tmp_path / "lines", None),
        (tmp_path / "named", None),
        (tmp_path / "all.json", "scores"),
        (tmp_path / "lines.json", None),
        (Dataset.from_dict({"scores": given}), None),
        (Dataset.from_list(named), None),
        (Dataset.from_dict({"scores": given, "text": ["w5"] * 24}), "scores"),
        (np.array(given), None),
    ):
        assert import_teacher_targets(rows, targets, column=column, **OPTIONS)[:] == expected


@pytest.mark.parametrize("kind", ["dataset", "list", "file"])
def test_rows_are_found_by_their_id(tmp_path, kind):
    """The targets have another order, and more rows."""
    given = scores(6)
    rows = make_dataset("classification", num_rows=6).add_column("id", [f"row-{index}" for index in range(6)])
    other = [{"id": f"row-{index}", "p": given[index]} for index in (5, 2, 0, 1, 4, 3)] + [{"id": "?", "p": [0.5, 0.5]}]
    write_json_lines(tmp_path / "targets.jsonl", other)
    targets = {"dataset": Dataset.from_list(other), "list": other, "file": tmp_path / "targets.jsonl"}[kind]
    by_id = import_teacher_targets(rows, targets, on="id", **OPTIONS)
    assert by_id["teacher_logits"][:] == import_teacher_targets(rows, given, **OPTIONS)["teacher_logits"][:]


def test_ids_that_do_not_fit():
    rows = Dataset.from_dict({"id": [1, 2, 3], "text": ["a", "b", "c"]})

    def join(ids, dataset=rows, on="id"):
        return import_teacher_targets(dataset, [{"id": id_, "p": [0.5, 0.5]} for id_ in ids], on=on, **OPTIONS)

    with pytest.raises(ValueError, match="1 rows of the dataset have no target, such as row 1 with id=2"):
        join([3, 1, 4])
    with pytest.raises(ValueError, match="Rows 0 and 2 of the targets have the same id=1"):
        join([1, 2, 1, 3])
    with pytest.raises(ValueError, match="Rows 0 and 1 of the dataset have the same id=1"):
        join([1, 2], Dataset.from_dict({"id": [1, 1], "text": ["a", "b"]}))
    with pytest.raises(ValueError, match="The dataset has no column on='number', only id, text"):
        join([1, 2, 3], on="number")
    with pytest.raises(ValueError, match="Row 0 of the targets has no 'text'"):
        join([1, 2, 3], on="text")
    with pytest.raises(ValueError, match="The targets have no column on='id', only p"):
        import_teacher_targets(rows, Dataset.from_dict({"p": [[0.5, 0.5]] * 3}), on="id", **OPTIONS)
    with pytest.raises(ValueError, match="on='id' would have no effect on columns of the dataset itself"):
        import_teacher_targets(rows, column="text", on="id", **OPTIONS)


def test_splits_are_imported_together(make_trainer):
    """One trainer takes them all, because they name one teacher."""
    splits = DatasetDict(train=make_dataset("classification"), test=make_dataset("classification", seed=1))
    given = {"train": scores(), "test": scores(seed=1)}
    both = import_teacher_targets(splits, given, **OPTIONS)
    assert source_of(both["train"]) == source_of(both["test"])
    trainer = make_trainer(student(), None, both["train"], both["test"], alpha_cos=0.0)
    assert trainer.evaluate()["eval_loss_kl"] > 0
    in_columns = DatasetDict({name: rows.add_column("p", given[name]) for name, rows in splits.items()})
    again = import_teacher_targets(in_columns, column="p", **OPTIONS)
    assert source_of(again["train"]) == source_of(both["train"])

    alone = [import_teacher_targets(splits[name], given[name], **OPTIONS) for name in splits]
    with pytest.raises(
        ValueError, match=r"eval_dataset has targets of .*one call of import_teacher_targets, as a Data"
    ):
        make_trainer(student(), None, *alone, alpha_cos=0.0)
    trainer = make_trainer(student(), None, alone[0], alpha_cos=0.0)
    with pytest.raises(ValueError, match=r"created with targets .*as a DatasetDict, or create one trainer for each"):
        trainer.evaluate(alone[1])
    given["test"][3] = [0.5]
    with pytest.raises(ValueError, match="Split 'test': Row 3 has 1 values for 2 classes"):
        import_teacher_targets(splits, given, **OPTIONS)
    with pytest.raises(ValueError, match="dataset has the splits 'train', 'test', but targets is 'train'"):
        import_teacher_targets(splits, {"train": scores()}, **OPTIONS)
    with pytest.raises(ValueError, match="but targets is a list"):
        import_teacher_targets(splits, scores(), **OPTIONS)
    with pytest.raises(TypeError, match="targets is a dict with 'train', 'test', but dataset is a Dataset"):
        import_teacher_targets(splits["train"], given, **OPTIONS)


def test_targets_stay_with_their_rows(make_trainer, tmp_path):
    rows = import_teacher_targets(make_dataset("classification"), scores(), **OPTIONS)
    rows.save_to_disk(tmp_path / "saved")
    rows.to_parquet(tmp_path / "saved.parquet")
    trained = [
        losses(train(make_trainer, student(), None, own, alpha_cos=0.0))
        for own in (rows, load_from_disk(tmp_path / "saved"), Dataset.from_parquet(str(tmp_path / "saved.parquet")))
    ]
    assert trained[0] == trained[1] == trained[2]
    shuffled = rows.shuffle(seed=1)
    assert {str(row["input_ids"]): row["teacher_logits"] for row in shuffled} == {
        str(row["input_ids"]): row["teacher_logits"] for row in rows
    }


def test_images_need_no_tokens(make_trainer):
    rows = [{**row, "pixel_values": row["pixel_values"].tolist()} for row in make_rows("image")]
    labels = [f"LABEL_{index}" for index in range(3)]
    given = np.random.default_rng(0).normal(size=(16, 3)).tolist()
    rows = import_teacher_targets(Dataset.from_list(rows), given, format="logits", teacher="a program", labels=labels)
    from transformers import default_data_collator

    options = {"alpha_cos": 0.0, "data_collator": default_data_collator}
    assert make_trainer(make_model("vit", "image"), None, rows, rows, **options).evaluate()["eval_loss_kl"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "percent"}, "format='percent' should be one of 'probabilities', 'logits', 'votes'"),
        ({"teacher": " "}, "teacher=' ' should be the name of the model or program"),
        ({"labels": None}, "labels is missing: format='probabilities' needs the names of the classes"),
        ({"labels": ["a", "a"]}, "should be a list of different names"),
        ({"labels": "ab"}, "labels='ab' should be a list of different names"),
        ({"format": "logits", "smoothing": 1.0}, "smoothing would have no effect with format='logits'"),
        ({"smoothing": -1.0}, "smoothing=-1.0 should be 0 or above"),
        ({"top_k": 3}, "top_k would have no effect with format='probabilities'"),
        ({"processing_class": TOKENIZER, "compression": {}}, "processing_class and compression would have no effect"),
        ({"format": "prompt_logprobs"}, "labels would have no effect with format='prompt_logprobs'"),
        ({"format": "prompt_logprobs", "labels": None}, "needs a tokenizer: pass the one"),
        (
            {"format": "logprobs", "labels": None, "processing_class": TOKENIZER, "top_k": 0},
            "top_k=0 should be above 0",
        ),
        ({"column": "p"}, "Row 0 of the targets has no 'p'"),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        import_teacher_targets(make_dataset("classification"), scores(), **{**OPTIONS, **options})


def test_what_is_refused(tmp_path, cache):
    rows = make_dataset("classification")
    with pytest.raises(ValueError, match="There are 15 targets for a dataset of 16 rows"):
        import_teacher_targets(rows, scores(15), **OPTIONS)
    with pytest.raises(ValueError, match="There is no column 'p', only input_ids, attention_mask, labels"):
        import_teacher_targets(rows, column="p", **OPTIONS)
    with pytest.raises(ValueError, match=r"already has targets: to import others.*remove_columns"):
        import_teacher_targets(import_teacher_targets(rows, scores(), **OPTIONS), scores(), **OPTIONS)
    with pytest.raises(ValueError, match="is empty"):
        import_teacher_targets(rows.select([]), [], **OPTIONS)
    with pytest.raises(TypeError, match="load it without streaming"):
        import_teacher_targets(rows.to_iterable_dataset(), scores(), **OPTIONS)
    with pytest.raises(TypeError, match=r"targets should be a list with one entry per row, .* but is a generator"):
        import_teacher_targets(rows, (own for own in scores()), **OPTIONS)
    with pytest.raises(TypeError, match="settings should have only JSON values"):
        import_teacher_targets(rows, scores(), **OPTIONS, settings={"model": rows})
    with pytest.raises(FileNotFoundError, match="has no files of targets"):
        import_teacher_targets(rows, tmp_path / "*.parquet", **OPTIONS)
    (tmp_path / "a.csv").write_text("p\n")
    with pytest.raises(ValueError, match=r"end in \.csv: pass one of \.parquet, \.json, \.jsonl"):
        import_teacher_targets(rows, tmp_path / "a.csv", **OPTIONS)
    (tmp_path / "a.jsonl").write_text('[0.5, 0.5]\n{"p": [0.5\n')
    with pytest.raises(ValueError, match=r"Line 2 of .*a\.jsonl is not JSON"):
        import_teacher_targets(rows, tmp_path / "a.jsonl", **OPTIONS)


def test_a_disk_that_is_full(monkeypatch):
    from hf_distill.training.teacher.importing import writing

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(writing.pa, "OSFile", full)
    with pytest.raises(OSError, match=r"could not be written to .*No space left.*set HF_DATASETS_CACHE"):
        import_teacher_targets(make_dataset("classification"), scores(), **OPTIONS)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (
            ("gpt2", "causal", {}),
            r"head of AutoModelForSequenceClassification and problem_type='single.*GPT2LMHeadModel",
        ),
        (("bert", "multi_label", {}), "student is a BertForSequenceClassification with .*multi_label_classification"),
        (("bert", "classification", {"num_labels": 3}), r"labels are \['LABEL_0', 'LABEL_1', 'LABEL_2'\] and the"),
        (
            ("bert", "classification", {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}),
            r"labels are \['a', 'b'\] and the teacher's \['no', 'yes'\]",
        ),
    ],
)
def test_students_that_do_not_fit(make_trainer, student, message):
    family, head, options = student
    labels = ["no", "yes"] if "id2label" in options else LABELS
    rows = import_teacher_targets(make_dataset("classification"), scores(), **{**OPTIONS, "labels": labels})
    with pytest.raises(ValueError, match=message):
        make_trainer(make_model(family, head, **options), None, rows, alpha_cos=0.0)


def test_hidden_states_are_not_there(make_trainer):
    rows = import_teacher_targets(make_dataset("classification"), scores(), **OPTIONS)
    with pytest.raises(ValueError, match="needs the teacher's hidden states, which are not stored"):
        make_trainer(student(), None, rows)


def test_targets_of_two_kinds_do_not_mix(make_trainer):
    rows = make_dataset("classification")
    ours = import_teacher_targets(rows, scores(), **OPTIONS)
    own = add_teacher_targets(rows, student(), TOKENIZER)
    collator = DataCollatorWithPadding(TOKENIZER)
    for pair in ((ours, own), (own, ours)):
        with pytest.raises(ValueError, match="eval_dataset has targets of the teacher"):
            make_trainer(student(), None, *pair, alpha_cos=0.0, data_collator=collator)
