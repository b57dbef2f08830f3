"""The arguments of stages, and their errors."""

import pytest

from hf_distill import DistillationTrainingArguments, make_stages

INNER = {"name": "inner", "alpha_kl": 0.0, "alpha_task": 0.0, "num_train_epochs": 10, "learning_rate": 1e-4}


def arguments(**options):
    options = {"use_cpu": True, "report_to": "none", "temperature": 4.0, "num_train_epochs": 3} | options
    return DistillationTrainingArguments("out", **options)


def test_a_training_without_stages():
    args = arguments()
    (stage,) = make_stages(args)
    assert stage.args is args
    assert (stage.name, stage.student, stage.later, stage.earlier) == (None, None, (), {})


def test_stages():
    shared = arguments(teacher_model_name_or_path="teacher", push_to_hub=True, hub_model_id="me/student")
    labels = {"name": "labels", "alpha_kl": 0.0, "alpha_cos": 0.0, "max_steps": 7}
    inner, predictions, last = make_stages(shared, [INNER, {"name": "predictions", "alpha_cos": 0.0}, labels])
    assert [stage.args.output_dir for stage in (inner, predictions, last)] == [
        "out/stage-1-inner",
        "out/stage-2-predictions",
        "out",
    ]
    assert [stage.student for stage in (inner, predictions, last)] == [
        None,
        "out/stage-1-inner",
        "out/stage-2-predictions",
    ]
    assert inner.later == ("out/stage-2-predictions", "out")
    assert last.later == ()
    assert [stage.args.push_to_hub for stage in (inner, predictions, last)] == [False, False, True]
    assert [stage.args.num_train_epochs for stage in (inner, predictions, last)] == [10, 3, 3]
    # What no loss of a stage reads is left out there.
    assert [stage.args.temperature for stage in (inner, predictions, last)] == [2.0, 4.0, 2.0]
    assert [stage.args.teacher_model_name_or_path for stage in (inner, predictions, last)] == [
        "teacher",
        "teacher",
        None,
    ]
    assert last.earlier == {
        "stage 1, inner": "loss = 1.0 * L_cos; 10 epochs; learning rate 0.0001",
        "stage 2, predictions": "loss = 5.0 * L_kl + 2.0 * L_task; 3 epochs; learning rate 5e-05",
    }
    # Everything else is shared.
    own = {*INNER, "output_dir", "push_to_hub", "temperature"}
    before, after = shared.to_dict(), inner.args.to_dict()
    assert {name for name in before if before[name] != after[name]} <= own
    assert (shared.output_dir, shared.temperature, shared.num_train_epochs) == ("out", 4.0, 3)


@pytest.mark.parametrize(
    ("stages", "options", "message"),
    [
        ([], {}, r"stages=\[\] should be a list of at least one stage, such as `stages: \[\{name: inner"),
        ({"name": "inner"}, {}, "should be a list of at least one stage"),
        ("inner", {}, "stages='inner' should be a list"),
        (["inner"], {}, "Stage 1 should be a mapping, as in .*, but is 'inner'"),
        ([{"alpha_kl": 0.0}], {}, "Stage 1 has the name None: give it one of letters, digits"),
        ([INNER, {"name": "a/b"}], {}, "Stage 2 has the name 'a/b'"),
        ([INNER, INNER], {}, "Several stages have the name inner"),
        (
            [{"name": "one", "lerning_rate": 1.0}],
            {},
            "'one': lerning_rate is not a training .* Did you mean learning_r",
        ),
        ([{"name": "one", "output_dir": "a"}], {}, "Stage 'one': output_dir must be the same in all stages"),
        ([{"name": "one", "hub_model_id": "a"}], {}, "Stage 'one': hub_model_id must be the same in all stages"),
        ([{"name": "one", "learning_rate": "1e-4"}], {}, "learning_rate is the text '1e-4', not a number"),
        ([{"name": "one", "alpha_kl": "linear:1"}], {}, "Stage 'one': alpha_kl='linear:1' should be a finite number"),
        ([INNER, {"name": "two", "alpha_kl": -1.0}], {}, "Stage 'two': alpha_kl=-1.0 should be 0 .off. or above"),
        ([INNER | {"alpha_cos": 0.0}], {}, "Stage 'inner': .*alpha_cos=0.0, .* turn all losses off"),
        ([INNER | {"temperature": 3.0}], {}, "Stage 'inner': temperature=3.0 would have no effect with alpha_kl=0.0"),
        ([INNER], {}, "temperature=4.0 would have no effect in any stage: leave it out"),
        ([INNER, {"name": "two"}], {"resume_from_checkpoint": "out/checkpoint-1"}, "does not work with stages"),
    ],
)
def test_errors(stages, options, message):
    with pytest.raises(ValueError, match=message):
        make_stages(arguments(**options), stages)
