"""Every option is read from the command line and from YAML, and checked."""

import dataclasses

import pytest
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_distill import DistillationTrainingArguments
from tests.processes import run_python

OWN_FIELDS = {
    *(field.name for field in dataclasses.fields(DistillationTrainingArguments)),
} - {field.name for field in dataclasses.fields(Seq2SeqTrainingArguments)}


def test_defaults_are_the_published_ones():
    arguments = DistillationTrainingArguments("out")
    assert (arguments.temperature, arguments.alpha_kl, arguments.alpha_task, arguments.alpha_cos) == (
        2.0,
        5.0,
        2.0,
        1.0,
    )
    assert arguments.kl_positions == "labels"


def test_own_fields():
    assert {
        "temperature",
        "alpha_kl",
        "alpha_task",
        "alpha_cos",
        "alpha_hidden",
        "alpha_attention",
        "alpha_relation",
        "alpha_embedding",
        "alpha_similarity",
        "alpha_anchor",
        "embedding_loss",
        "embedding_dims",
        "project_embeddings",
        "similarity_temperature",
        "anchors",
        "alpha_margin",
        "alpha_listwise",
        "layer_map",
        "hidden_loss",
        "hidden_embeddings",
        "attention_heads",
        "relation_layer",
        "relation_heads",
        "divergence",
        "divergence_beta",
        "divergence_skew",
        "dkd_alpha",
        "dkd_beta",
        "standardize_logits",
        "kl_positions",
        "log_gradient_norms",
        "teacher_model_name_or_path",
        "teacher_dtype",
        "project_hidden_states",
        "teacher_quantization",
        "teacher_device_map",
        "on_policy_fraction",
        "on_policy_max_new_tokens",
        "share_encoder",
        "teacher_mean",
        "teacher_weights",
        "teacher_weights_column",
    } == OWN_FIELDS


def test_every_field_has_help():
    helped = {field.name for field in dataclasses.fields(DistillationTrainingArguments) if field.metadata.get("help")}
    assert helped >= OWN_FIELDS


def test_command_line():
    options = "--output_dir=out --temperature=4 --alpha-cos=0 --kl_positions=attended --teacher_dtype=bfloat16"
    (arguments,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(options.split(" "))
    assert (arguments.temperature, arguments.alpha_cos) == (4.0, 0.0)
    assert (arguments.kl_positions, arguments.teacher_dtype) == ("attended", "bfloat16")


def test_several_teachers_on_the_command_line():
    options = "--output_dir=out --teacher_weights 2 1.5 --teacher_mean logits"
    (arguments,) = HfArgumentParser(DistillationTrainingArguments).parse_args_into_dataclasses(options.split(" "))
    assert (arguments.teacher_weights, arguments.teacher_mean) == ([2.0, 1.5], "logits")


def test_yaml(tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("output_dir: out\ntemperature: 4.0\nalpha_kl: 1.0e-1\nteacher_model_name_or_path: roberta-base\n")
    (arguments,) = HfArgumentParser(DistillationTrainingArguments).parse_yaml_file(config)
    assert (arguments.temperature, arguments.alpha_kl) == (4.0, 0.1)
    assert arguments.teacher_model_name_or_path == "roberta-base"


def test_help_on_the_command_line():
    code = "from transformers import HfArgumentParser; from hf_distill import DistillationTrainingArguments as A; "
    run = run_python(["-c", code + "HfArgumentParser(A).parse_args(['--help'])"])
    assert run.returncode == 0
    assert all(f"--{name}" in run.stdout for name in OWN_FIELDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature=0.0 should be above 0"),
        ({"temperature": -1.0}, "temperature=-1.0 should be above 0"),
        ({"temperature": float("nan")}, "temperature=nan should be a finite number"),
        ({"temperature": True}, "temperature=True should be a finite number"),
        ({"alpha_kl": "1e-1"}, "alpha_kl='1e-1' should be a finite number.*write 1.0e-1"),
        ({"alpha_kl": None}, "alpha_kl=None should be a finite number"),
        ({"alpha_task": -0.5}, "alpha_task=-0.5 should be 0"),
        ({"alpha_kl": 0, "alpha_task": 0, "alpha_cos": 0}, "turn all losses off"),
        ({"kl_positions": "all"}, "kl_positions='all' should be one of 'labels', 'attended'"),
        ({"kl_positions": None}, "kl_positions=None should be one of"),
        ({"teacher_dtype": "int8"}, "teacher_dtype='int8' should be one of 'float32', 'bfloat16', 'float16'"),
        ({"logging_nan_inf_filter": True}, "logging_nan_inf_filter=True would have no effect"),
        ({"alpha_cos": 0, "project_hidden_states": True}, "project_hidden_states=True would have no effect"),
        ({"teacher_quantization": "2bit"}, "teacher_quantization='2bit' should be one of '8bit', '4bit'"),
        ({"average_tokens_across_devices": False}, "average_tokens_across_devices=False would have no effect"),
        ({"alpha_kl": 0, "temperature": 4.0}, "temperature=4.0 would have no effect with alpha_kl=0"),
        ({"alpha_kl": 0, "kl_positions": "attended"}, "kl_positions='attended' would have no effect"),
        (
            {"alpha_kl": 0, "alpha_cos": 0, "teacher_dtype": "float16", "teacher_model_name_or_path": "roberta-base"},
            "teacher_model_name_or_path='roberta-base', teacher_dtype='float16' would have no effect",
        ),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        DistillationTrainingArguments("out", **options).check_losses()


@pytest.mark.parametrize(
    "metric",
    [
        "loss_kl",
        "loss_task",
        "loss_cos",
        "eval_loss_kl",
        "eval_books_loss_kl",
        "books_loss_cos",
        "kl_to_teacher",
        "eval_expected_calibration_error",
    ],
)
def test_less_of_a_loss_is_better(tmp_path, metric):
    options = {"metric_for_best_model": metric}
    assert DistillationTrainingArguments(str(tmp_path), **options).greater_is_better is False
    assert DistillationTrainingArguments(str(tmp_path), greater_is_better=True, **options).greater_is_better is True


@pytest.mark.parametrize(
    ("metric", "greater"), [("accuracy", True), ("eval_f1", True), ("loss", False), ("eval_loss", False)]
)
def test_other_metrics_are_compared_as_in_trainer(tmp_path, metric, greater):
    assert DistillationTrainingArguments(str(tmp_path), metric_for_best_model=metric).greater_is_better is greater
