"""`check_split_invariance`: losses that it accepts, and errors that it finds."""

import datasets
import pytest
import torch

from hf_distill import Loss, Needs, check_split_invariance
from hf_distill.training.losses import CosineLoss, DivergenceLoss, TaskLoss
from hf_distill.training.losses.hidden_states import Projection
from hf_distill.training.losses.task import cross_entropy
from hf_distill.training.scoring import pieces
from tests.conftest import collate, make_model, make_rows
from tests.training.losses.test_given import Mapped, ReverseKL
from tests.training.teacher.test_targets import TOKENIZER


def check(loss, head="mlm", width=16, with_teacher=True, **options):
    return check_split_invariance(
        loss,
        model=make_model("bert", head, seed=1, num_layers=2, width=width),
        teacher_model=make_model("bert", head) if with_teacher else None,
        train_dataset=make_rows(head),
        data_collator=collate,
        **options,
    )


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (DivergenceLoss(), {}),
        (DivergenceLoss(), {"kl_positions": "attended"}),
        (DivergenceLoss(), {"head": "classification"}),
        (TaskLoss(cross_entropy), {"with_teacher": False}),
        (CosineLoss(), {}),
        (CosineLoss(Projection(8, 16, seed=0)), {"width": 8}),
        (ReverseKL(), {}),
        (Mapped(), {"width": 8, "head": "classification"}),
    ],
)
def test_sums_do_not_depend_on_the_split(loss, options):
    measured = check(loss, **options)
    assert measured.parts == (2, 4, 8, 16)
    assert 0 <= measured.loss <= 1e-6
    assert 0 <= measured.gradient <= 1e-6


class Mean(ReverseKL):
    def forward(self, student, teacher, scored):
        return super().forward(student, teacher, scored) / max(1, len(student.logits))


class MeanOfNothing(ReverseKL):
    """A mean that is NaN if a micro-batch has no items."""

    def forward(self, student, teacher, scored):
        return super().forward(student, teacher, scored) / len(student.logits)


class OverPaddedLength(Loss):
    """Divided by the length of the longest row in the batch."""

    needs = Needs(last_hidden_state=True)

    def forward(self, student, teacher, scored):
        distance = (student.last_hidden_state - teacher.last_hidden_state).square().mean((1, 2))
        return distance.sum()


class AcrossItems(ReverseKL):
    """Each item is compared with the mean of all items in its batch."""

    def forward(self, student, teacher, scored):
        probabilities = student.logits.float().softmax(-1)
        return (probabilities - probabilities.mean(0)).square().sum()


class CountsWhatItSaw(ReverseKL):
    """Counts as items the positions where the student is confident."""

    seen = 1

    def items(self, scored):
        return torch.tensor(self.seen)

    def forward(self, student, teacher, scored):
        self.seen = int((student.logits.argmax(-1) == teacher.logits.argmax(-1)).sum()) + 2
        return super().forward(student, teacher, scored)


class CountsBatches(ReverseKL):
    def items(self, scored):
        return torch.tensor(1)


class Nothing(ReverseKL):
    def forward(self, student, teacher, scored):
        return 0 * super().forward(student, teacher, scored)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            Mean(),
            r"The loss Mean depends on how a step is split: it is .* in one batch of 16 rows, but .* in 2 .*"
            r"\(relative difference 1, .*at most 1e-06 is allowed\).*It seems to return a mean: return the sum",
        ),
        (MeanOfNothing(), "MeanOfNothing is NaN or infinite in 16 micro-batches of 1.*sum over the items, which is 0"),
        (OverPaddedLength(), "OverPaddedLength depends on how a step is split.*without the others and without padding"),
        (AcrossItems(), "AcrossItems depends on how a step is split.*without the others and without padding"),
        (CountsWhatItSaw(), r"CountsWhatItSaw counts 1 items before a forward pass and \d+ after it"),
        (CountsBatches(), r"CountsBatches counts 1 items in one batch of 16 rows, but 2 in 2 micro-batches of 8"),
        (Nothing(), "Nothing or its gradient is 0 on these rows"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Loss) else "",
)
def test_what_is_found(loss, message):
    with pytest.raises(ValueError, match=message):
        check(loss)


def test_a_mean_over_a_piece_is_found():
    """Micro-batches do not reveal this error, because each has all positions of its rows in one piece."""

    class MeanOfPiece(ReverseKL):
        def forward(self, student, teacher, scored):
            whole = super().forward(student, teacher, scored)
            return whole if len(student.logits) > 4 else whole / len(student.logits)

    rows = [
        {name: (values * 8)[:30] for name, values in row.items()}
        for row in make_rows("mlm")
        if len(row["input_ids"]) > 3
    ]
    with pytest.raises(ValueError, match=r"MeanOfPiece depends on how a step is split.* with 4 positions at a time"):
        check_split_invariance(
            MeanOfPiece(),
            model=make_model("bert", "mlm", seed=1, num_layers=2),
            teacher_model=make_model("bert", "mlm"),
            train_dataset=rows[:4],
            data_collator=collate,
            kl_positions="attended",
        )
    assert pieces.CHUNK_ELEMENTS == 2**24
    assert pieces.BLOCK_ELEMENTS_ON_CPU == 2**20


def test_nothing_that_is_given_is_changed_and_nothing_is_printed(capsys):
    loss, student, teacher = Mapped(), make_model("bert", "mlm", seed=1, width=8), make_model("bert", "mlm")
    before = {name: value.clone() for m in (loss, student, teacher) for name, value in m.state_dict().items()}
    student.train()
    check_split_invariance(
        loss, model=student, teacher_model=teacher, train_dataset=make_rows("mlm")[:4], data_collator=collate
    )
    after = {name: value for m in (loss, student, teacher) for name, value in m.state_dict().items()}
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert capsys.readouterr().out == ""
    assert student.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in student.parameters())
    assert all(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("num_rows", [1, 65])
def test_too_few_or_too_many_rows(num_rows):
    with pytest.raises(ValueError, match=f"train_dataset has {num_rows} rows: give 4 to 64"):
        check_split_invariance(ReverseKL(), model=None, train_dataset=[{}] * num_rows)


def test_columns_that_no_model_reads():
    """Columns that no model reads are left out, as in a training."""
    rows = datasets.Dataset.from_list([{**row, "note": "a text"} for row in make_rows("classification")])
    measured = check_split_invariance(
        ReverseKL(),
        model=make_model("bert", "classification", seed=1, num_layers=2),
        teacher_model=make_model("bert", "classification"),
        train_dataset=rows,
        processing_class=TOKENIZER,
    )
    assert measured.parts == (2, 4, 8, 16)
