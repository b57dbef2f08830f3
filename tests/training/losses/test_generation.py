"""Evaluations that generate give the same predictions and metrics as `Seq2SeqTrainer`."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from transformers import GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments

from hf_distill import DistillationTrainer, DistillationTrainingArguments, add_teacher_targets
from tests.conftest import collate, make_model, make_rows, make_text_tokenizer
from tests.processes import run_on_two_processes

ROWS = [row for row in make_rows("seq2seq", num_rows=14) if row["labels"]]
OPTIONS = {
    "predict_with_generate": True,
    "report_to": "none",
    "disable_tqdm": True,
    "per_device_eval_batch_size": 4,
    "use_cpu": True,
}


def share_of_right_tokens(predicted):
    """A metric of the tokens, without padding."""
    both = predicted.predictions, predicted.label_ids
    predictions, labels = (np.where(tokens == -100, 0, tokens) for tokens in both)
    width = min(predictions.shape[1], labels.shape[1])
    is_right = (predictions[:, :width] == labels[:, :width]) & (labels[:, :width] > 0)
    return {"right": is_right.sum() / (labels > 0).sum(), "tokens": int((predictions > 0).sum()), "rows": len(labels)}


def make(cls, folder, head="seq2seq", family="bart", rows=ROWS, teacher=True, **options):
    arguments = Seq2SeqTrainingArguments if cls is Seq2SeqTrainer else DistillationTrainingArguments
    own = {"teacher_model": make_model(family, head, seed=1)} if cls is not Seq2SeqTrainer and teacher else {}
    layers = {"num_decoder_layers": 2} if family == "t5" else {}  # transformers needs as many as encoder layers
    return cls(
        model=make_model(family, head, **layers),
        args=arguments(output_dir=str(folder), **{**OPTIONS, **options}),
        eval_dataset=rows,
        data_collator=collate,
        processing_class=make_text_tokenizer(),
        compute_metrics=share_of_right_tokens,
        **own,
    )


@pytest.mark.parametrize(
    ("head", "family", "options"),
    [
        ("seq2seq", "bart", {}),
        ("seq2seq", "t5", {"generation_num_beams": 3, "generation_max_length": 9}),
        ("causal", "gpt2", {"generation_config": GenerationConfig(max_new_tokens=7, eos_token_id=2, pad_token_id=0)}),
    ],
)
def test_as_seq2seq_trainer(tmp_path, head, family, options):
    rows = [row for row in make_rows(head, num_rows=9) if row["labels"]]
    ours, theirs = (make(cls, tmp_path, head, family, rows, **options) for cls in (DistillationTrainer, Seq2SeqTrainer))
    for given in ({}, {"num_beams": 2, "max_length": 30}):
        predicted, expected = (trainer.predict(rows, **given) for trainer in (ours, theirs))
        assert predicted.predictions.tolist() == expected.predictions.tolist()
        assert {len(set(row)) for row in predicted.predictions.tolist()} != {1}
        for name in ("test_right", "test_tokens", "test_rows"):
            assert predicted.metrics[name] == expected.metrics[name]
        if not given:
            assert predicted.label_ids.tolist() == expected.label_ids.tolist()
    assert ours.evaluate()["eval_right"] == theirs.evaluate()["eval_right"]


def test_losses_are_those_without_generation(tmp_path):
    generating, plain = (make(DistillationTrainer, tmp_path, predict_with_generate=on) for on in (True, False))
    plain.compute_metrics = None
    evaluated, expected = generating.evaluate(), plain.evaluate()
    for part in ("loss", "loss_kl", "loss_task", "loss_cos"):
        assert evaluated[f"eval_{part}"] == expected[f"eval_{part}"]


def test_generation_reads_only_what_the_student_reads(tmp_path):
    """No stored targets, no decoder inputs that were derived from labels, and no forward for a loss of its own."""
    teacher = make_model("bart", "seq2seq", seed=1)
    rows = add_teacher_targets(Dataset.from_list(ROWS), teacher, make_text_tokenizer(), output_dir=tmp_path / "targets")
    stored = make(DistillationTrainer, tmp_path, rows=rows, teacher=False, alpha_cos=0.0)
    stored.data_collator = lambda batch: {
        **(made := collate(batch)),
        "decoder_input_ids": stored.model.prepare_decoder_input_ids_from_labels(made["labels"]),
    }
    plain = make(DistillationTrainer, tmp_path)
    assert stored.predict(rows).predictions.tolist() == plain.predict(ROWS).predictions.tolist()


def test_without_labels_a_teacher_alone_is_enough(tmp_path):
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in ROWS]
    trainer = make(DistillationTrainer, tmp_path, alpha_task=0.0, generation_max_length=9)
    assert trainer.predict(rows).predictions.tolist() == trainer.predict(ROWS).predictions.tolist()


def test_the_generation_config_is_saved_with_the_student(tmp_path):
    GenerationConfig(max_length=11, num_beams=2, eos_token_id=2, pad_token_id=0).save_pretrained(tmp_path / "given")
    trainer = make(DistillationTrainer, tmp_path, generation_config=str(tmp_path / "given"))
    trainer.save_model(tmp_path / "saved")
    assert GenerationConfig.from_pretrained(tmp_path / "saved").num_beams == 2
    assert json.loads(trainer.args.to_json_string())["generation_config"] == str(tmp_path / "given")


def test_best_model_by_a_metric_of_generated_text(tmp_path):
    trainer = make(
        DistillationTrainer,
        tmp_path,
        max_steps=2,
        eval_strategy="steps",
        eval_steps=1,
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="right",
    )
    trainer.train_dataset = ROWS
    trainer.train()
    seen = [log["eval_right"] for log in trainer.state.log_history if "eval_right" in log]
    assert len(seen) == 2
    assert trainer.state.best_metric == max(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_num_beams": 2}, "generation_num_beams=2 would have no effect without predict_with_generate=True"),
        ({"generation_max_length": 9}, "generation_max_length=9 would have no effect without"),
        ({"sortish_sampler": True}, "sortish_sampler=True would have no effect"),
    ],
)
def test_options_without_an_effect(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments(output_dir="unused", **options)


def test_generation_options_without_generation(tmp_path):
    trainer = make(DistillationTrainer, tmp_path, predict_with_generate=False)
    for call in (trainer.evaluate, lambda **given: trainer.predict(ROWS, **given)):
        with pytest.raises(ValueError, match="num_beams=2 would have no effect without predict_with_generate=True"):
            call(num_beams=2)


def test_a_student_that_cannot_generate(tmp_path):
    with pytest.raises(ValueError, match="does not work with a BertForSequenceClassification, which cannot generate"):
        make(DistillationTrainer, tmp_path, "classification", "bert")


def test_another_way_to_gather_is_kept(tmp_path):
    trainer, gathered = make(DistillationTrainer, tmp_path, predict_with_generate=False), []
    trainer.compute_metrics = None
    trainer.gather_function = lambda values: gathered.append(values) or values
    trainer.evaluate()
    assert gathered


@pytest.mark.long
def test_two_processes(tmp_path):
    """As one process: rows that fill up the last batch are not counted twice."""
    result = tmp_path / "result.json"
    run = run_on_two_processes([__file__, result], cwd=Path(__file__).parents[3])
    assert run.returncode == 0, run.stderr[-2000:]
    on_two, on_one = json.loads(result.read_text()), evaluated(tmp_path)
    assert len(ROWS) % 8 != 0  # the last batch is filled up
    for name, expected in on_one.items():
        assert on_two[name] == pytest.approx(expected, rel=1e-6), name


def evaluated(folder):
    trainer = make(DistillationTrainer, folder, generation_max_length=9)
    metrics = copy.copy(trainer.evaluate())
    return {name: metrics[f"eval_{name}"] for name in ("loss", "loss_kl", "right", "tokens", "rows")}


if __name__ == "__main__":
    metrics_of_all = evaluated(Path(sys.argv[1]).parent)
    Path(sys.argv[1]).write_text(json.dumps(metrics_of_all))
