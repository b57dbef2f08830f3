"""The losses between the scores that student and teacher give the candidates of a query: one class each.

They read grouped rows, such as those of `encode_rankings`: one row has a query with all its candidates.
"""

from typing import Any

import torch

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals, check_grouped
from hf_distill.training.losses.citations import CAO_2007, HOFSTAETTER_2020
from hf_distill.training.losses.divergences.distributions import of_softmax
from hf_distill.training.losses.divergences.log_probabilities import forward_kl
from hf_distill.training.losses.precision import at_least_fp32
from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.scoring.scored import MASKED_LOGIT, Scored


class MarginLoss(Loss):
    """MarginMSE, the squared difference between the margins of student and teacher: `alpha_margin`.

    A margin is the score of a relevant candidate minus the score of one that is not relevant, of the same query. The
    items are all such pairs of a query. Labels say what is relevant: above 0 is relevant, 0 is not. A candidate without
    a label is in no pair, and neither are the candidates of a query without labels. Where a teacher gives the scores
    and nobody has judged the relevance, there are no margins: `alpha_listwise` needs no labels.

    `forward` reads logits `[scored, 1]`, labels `[scored, 1]` and `candidates` `[groups, candidates]`, and returns the
    sum over the pairs in fp32.

    Reference: Hofstätter et al., 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge
    Distillation, https://arxiv.org/abs/2010.02666, whose queries have one pair each

    Raises:
        ValueError: in `check`, if there is not one score for each candidate; in `items`, if rows are not grouped, or if
            the labels of a query name no relevant candidate, or no other.

    Example:
        >>> student, teacher = (Signals(logits=torch.tensor([[score], [0.0]])) for score in (1.0, 3.0))
        >>> scored = ScoredItems(labels=torch.tensor([[1.0], [0.0]]), candidates=torch.tensor([[True, True]]))
        >>> MarginLoss()(student, teacher, scored)
        tensor(4.)
    """

    needs = Needs(logits=True, labels=True, groups=True)
    description = "the squared difference between the margins of student and teacher (MarginMSE)"
    citation = HOFSTAETTER_2020

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        _check_scores("alpha_margin", student)

    def items(self, scored: Scored) -> torch.Tensor:
        check_grouped("alpha_margin", scored)
        if scored.labels is None:
            return scored.positions.new_zeros((), dtype=torch.long)  # the trainer says that labels are missing
        relevant, others = _relevant_and_others(scored)
        num_relevant, num_others = relevant.sum(1), others.sum(1)
        is_labelled = (num_relevant + num_others).gt(0)
        if (is_labelled & num_relevant.eq(0)).any():
            raise ValueError(
                "A query has labels, but no relevant candidate (label above 0), which alpha_margin compares with the "
                "others: add one, remove the query, or set alpha_margin=0. alpha_listwise needs no labels."
            )
        if (is_labelled & num_others.eq(0)).any():
            raise ValueError(
                "A query has only relevant candidates (label above 0), but alpha_margin compares them with others: add "
                "a candidate with the label 0, remove the query, or set alpha_margin=0."
            )
        return (num_relevant * num_others).sum()

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        student_scores, teacher_scores = _scores(student, scored, 0.0), _scores(teacher, scored, 0.0)
        relevant, others = _relevant_and_others(scored)
        off = student_scores - teacher_scores.to(student_scores.dtype)
        off = off.unsqueeze(2) - off.unsqueeze(1)  # of a margin: [groups, relevant candidate, other candidate]
        is_pair = relevant.unsqueeze(2) & others.unsqueeze(1)
        return off.square().masked_fill(~is_pair, 0.0).sum()


class ListwiseLoss(Loss):
    """The KL divergence between the orders that teacher and student give the candidates of a query: `alpha_listwise`.

    `T² · KL(p ‖ q)` of the teacher's `p = softmax(scores / T)` over the candidates of a query and the student's `q`. A
    constant that is added to all scores of a query has no effect. The items are the queries. Labels are not read.

    `forward` reads logits `[scored, 1]` and `candidates` `[groups, candidates]`, and returns the sum over the groups in
    fp32.

    Reference: Cao et al., 2007, Learning to Rank: From Pairwise Approach to Listwise Approach, whose ListNet compares
    the same softmax of scores with one of relevance judgements

    Args:
        temperature: divides the scores of both sides.

    Raises:
        ValueError: in `check`, if there is not one score for each candidate; in `items`, if rows are not grouped, or if
            a query has only one candidate.

    Example:
        >>> student, teacher = Signals(logits=torch.zeros(2, 1)), Signals(logits=torch.tensor([[1.0], [0.0]]))
        >>> ListwiseLoss(temperature=1.0)(student, teacher, ScoredItems(candidates=torch.tensor([[True, True]])))
        tensor(0.1109)
    """

    needs = Needs(logits=True, groups=True)
    description = "the KL divergence between the teacher's and the student's softmax over the candidates of a query"
    citation = CAO_2007
    options = ("temperature",)

    def __init__(self, temperature: float = 2.0):
        super().__init__()
        self.temperature = temperature

    @classmethod
    def from_setup(cls, setup: Setup) -> "ListwiseLoss":
        return cls(setup.args.temperature)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        _check_scores("alpha_listwise", student)

    def state(self) -> dict[str, object]:
        return {"temperature": self.temperature}

    def items(self, scored: Scored) -> torch.Tensor:
        candidates = check_grouped("alpha_listwise", scored)
        if candidates.sum(1).eq(1).any():
            raise ValueError(
                "A query has only one candidate, so there is no order that alpha_listwise could compare: add another "
                "candidate, remove the query, or set alpha_listwise=0."
            )
        return candidates.any(1).sum()

    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        # The masked logit has the probability 0 on both sides, so padding changes neither value nor gradient.
        student_scores, teacher_scores = (_scores(own, scored, MASKED_LOGIT) for own in (student, teacher))
        dtype = student_scores.dtype
        if student_scores.device.type != "mps":  # which has no fp64
            # There are few scores. In fp32 a small KL, a difference of larger numbers, would depend on the sum's order.
            student_scores, teacher_scores = student_scores.double(), teacher_scores.double()
        return of_softmax(forward_kl, 2, student_scores, teacher_scores, self.temperature).to(dtype)


def _scores(signals: Signals, scored: ScoredItems, padding: float) -> torch.Tensor:
    """The scores `[groups, candidates]`, with `padding` where there is no candidate."""
    return scored.in_groups(at_least_fp32(signals.logits[:, 0]), padding)


def _relevant_and_others(scored: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """True for the relevant candidates, and for those known not to be relevant: `[groups, candidates]` each."""
    labels = scored.in_groups(scored.labels.flatten().float(), float(IGNORE_INDEX))
    return labels.gt(0), labels.le(0) & labels.ne(IGNORE_INDEX)  # NaN is unknown too, and in neither


def _check_scores(argument: str, student: HeadSpec) -> None:
    if student.logits_per_token is not None or student.num_labels != 1 or student.distribution == "categorical":
        raise ValueError(
            f"{argument} compares one score for each query and document, but the {student.model} has "
            f"num_labels={student.num_labels} and problem_type={student.problem_type!r}: load student and teacher with "
            f"AutoModelForSequenceClassification and num_labels=1, or set {argument}=0."
        )
