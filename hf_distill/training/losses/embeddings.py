"""The losses between the vectors of embedding models: one text at a time, or between texts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from hf_distill.embedding.anchors import Anchors, fingerprint_of, read_anchors
from hf_distill.training.losses.base import Loss, Needs, ScoredItems, Setup, Signals
from hf_distill.training.losses.citations import FANG_2021, GAO_2021, KUSUPATI_2022, REIMERS_2020
from hf_distill.training.losses.hidden_states import Projection, cosine_distance, mean_squared_error
from hf_distill.training.losses.precision import at_least_fp32, without_autocast
from hf_distill.training.scoring.alignment import HeadSpec

EMBEDDING_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "cosine": cosine_distance,
    "mse": mean_squared_error,
}
"""What `alpha_embedding` minimises, by the value of `embedding_loss`."""


class EmbeddingLoss(Loss):
    """The distance between the student's vector of a text and the teacher's: `alpha_embedding`.

    The mean over the texts. `forward` reads embeddings `[texts, width]`, and returns the sum over the texts in fp32.

    Reference: Reimers and Gurevych, 2020, https://arxiv.org/abs/2004.09813, for the squared error; Kusupati et al.,
    2022, Matryoshka Representation Learning, https://arxiv.org/abs/2205.13147, for `dims`

    Args:
        distance: a function from `EMBEDDING_LOSSES`.
        projection: a trained map from the student's width to the teacher's, which is not saved with the student; None
            if the widths are equal.
        dims: compare only the first numbers of both vectors, for each of these widths, and take the mean; None for the
            whole vectors.

    Example:
        >>> student = Signals(embeddings=torch.ones(3, 16))
        >>> EmbeddingLoss(cosine_distance)(student, Signals(embeddings=-torch.ones(3, 16)), ScoredItems())
        tensor(6.)
    """

    needs = Needs(embeddings=True)
    description = "the distance between the vectors of student and teacher"
    citation = REIMERS_2020
    options = ("embedding_loss", "project_embeddings", "embedding_dims")

    def __init__(
        self,
        distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        projection: Projection | None = None,
        dims: Sequence[int] | None = None,
    ):
        super().__init__()
        self.distance, self.projection, self.dims = distance, projection, dims
        if dims is not None:
            self.citation = f"{REIMERS_2020}\n\n{KUSUPATI_2022}"

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        check_dims(args.embedding_dims)
        if args.project_embeddings and args.embedding_dims is not None:
            raise ValueError(
                f"embedding_dims={args.embedding_dims} compares the first numbers of both vectors, which a projection "
                f"mixes: leave out project_embeddings, or embedding_dims."
            )

    @classmethod
    def from_setup(cls, setup: Setup) -> "EmbeddingLoss":
        args = setup.args
        return cls(EMBEDDING_LOSSES[args.embedding_loss], _projection(setup), args.embedding_dims)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        if self.projection is None and student.embedding_width != teacher.embedding_width:
            raise ValueError(
                f"The student's vectors are {student.embedding_width} wide and the teacher's "
                f"{teacher.embedding_width}: set project_embeddings=True, which trains a map that is then dropped; "
                f"keep a map in the student, with fit_dense, or in the teacher, with reduce_width; or use only "
                f"alpha_similarity, which compares texts with each other."
            )
        check_dims_fit(self.dims, student, teacher)

    def state(self) -> dict[str, object]:
        name = next((name for name, distance in EMBEDDING_LOSSES.items() if distance is self.distance), "custom")
        return {"loss": name, "projection": self.projection is not None, "dims": self.dims}

    @without_autocast
    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        own, other = projected(self.projection, student.embeddings), at_least_fp32(teacher.embeddings)
        dims = self.dims or [own.shape[1]]
        return torch.stack([self.distance(own[:, :dim], other[:, :dim]).sum() for dim in dims]).mean()


class SimilarityLoss(Loss):
    """The KL divergence between similarity distributions over the other texts of the step: `alpha_similarity`.

    For each text, a softmax over its cosines to all other texts of the optimizer step, divided by the temperature. The
    teacher's distribution is the target. The other texts are those of all micro-batches and processes, so the loss does
    not depend on how the step is split. In an evaluation, they are those of the batch. Widths may differ.

    The mean over the texts. `forward` reads embeddings `[texts, width]`, and returns the sum over the texts in fp32.

    Reference: Fang et al., 2021, SEED, https://arxiv.org/abs/2101.04731, with the texts of the step in place of a
    queue; Gao et al., 2021, GradCache, https://arxiv.org/abs/2101.06983, for large batches

    Args:
        temperature: what the cosines are divided by.
        dims: use only the first numbers of the student's vector, for each of these widths, and take the mean.

    Example:
        >>> embeddings = torch.randn(8, 16)
        >>> SimilarityLoss(0.05)(Signals(embeddings=embeddings), Signals(embeddings=2 * embeddings), ScoredItems())
        tensor(0.)
    """

    needs = Needs(embeddings=True, whole_step=True)
    description = "the KL divergence between similarities to the other texts of a step"
    citation = f"{FANG_2021}\n\n{GAO_2021}"
    options = ("similarity_temperature", "embedding_dims")

    def __init__(self, temperature: float = 0.05, dims: Sequence[int] | None = None):
        super().__init__()
        self.temperature, self.dims = temperature, dims

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        check_dims(args.embedding_dims)
        check_temperature(args.similarity_temperature)

    @classmethod
    def from_setup(cls, setup: Setup) -> "SimilarityLoss":
        return cls(setup.args.similarity_temperature, setup.args.embedding_dims)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        check_dims_fit(self.dims, student)

    def state(self) -> dict[str, object]:
        return {"similarity_temperature": self.temperature, "dims": self.dims}

    @without_autocast
    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        own, target = student.embeddings, self._log_distribution(teacher.embeddings)
        dims = self.dims or [own.shape[1]]
        return torch.stack([kl_sum(self._log_distribution(own[:, :dim]), target) for dim in dims]).mean()

    def _log_distribution(self, embeddings: torch.Tensor) -> torch.Tensor:
        """`[texts, texts - 1]`: for each text, the log-probabilities of the others."""
        unit = F.normalize(in_fp64(embeddings), dim=-1)
        others = ~torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        cosines = (unit @ unit.T)[others].reshape(len(unit), max(len(unit) - 1, 0))
        return (cosines / self.temperature).log_softmax(-1)


class AnchorLoss(Loss):
    """The KL divergence between similarity distributions over a fixed set of texts, the anchors: `alpha_anchor`.

    For each text, a softmax over its cosines to the teacher's vectors of the anchors, divided by the temperature. The
    distribution of the teacher's vector is the target.

    The mean over the texts. `forward` reads embeddings `[texts, width]`, and returns the sum over the texts in fp32.

    Reference: Fang et al., 2021, SEED, https://arxiv.org/abs/2101.04731, with a fixed set in place of a queue

    Args:
        anchors: `[anchors, width]`, the teacher's vectors of at least two texts; from a file, `read_anchors(file)`.
        temperature: what the cosines are divided by.
        projection: a trained map from the student's width to the teacher's, which is not saved with the student; None
            if the widths are equal.
        dims: use only the first numbers of all vectors, for each of these widths, and take the mean.

    Example:
        >>> loss = AnchorLoss(torch.randn(100, 16))
        >>> embeddings = torch.randn(8, 16)
        >>> loss(Signals(embeddings=embeddings), Signals(embeddings=embeddings), ScoredItems())
        tensor(0.)
    """

    needs = Needs(embeddings=True)
    description = "the KL divergence between similarities to a fixed set of texts"
    citation = FANG_2021
    options = ("anchors", "similarity_temperature", "project_embeddings", "embedding_dims")
    anchors: torch.Tensor

    def __init__(
        self,
        anchors: torch.Tensor | Anchors,
        temperature: float = 0.05,
        projection: Projection | None = None,
        dims: Sequence[int] | None = None,
    ):
        super().__init__()
        vectors = anchors.vectors if isinstance(anchors, Anchors) else anchors
        if vectors.ndim != 2 or len(vectors) < 2:
            raise ValueError(f"anchors has the shape {list(vectors.shape)}: give the vectors of at least two texts.")
        self.register_buffer("anchors", at_least_fp32(vectors), persistent=False)
        self.temperature, self.projection, self.dims = temperature, projection, dims

    @classmethod
    def check_arguments(cls, args: Any) -> None:
        EmbeddingLoss.check_arguments(args)
        check_temperature(args.similarity_temperature)
        if args.anchors is None:
            raise ValueError("alpha_anchor needs anchors: set anchors to a file from write_anchors.")

    @classmethod
    def from_setup(cls, setup: Setup) -> "AnchorLoss":
        args = setup.args
        anchors = read_anchors(str(args.anchors))
        if setup.teacher_fingerprint not in (None, anchors.fingerprint):
            raise ValueError(
                f"The anchors in {args.anchors} are vectors of another model ({anchors.teacher!r}, fingerprint "
                f"{anchors.fingerprint}) than the teacher ({setup.teacher_fingerprint}): write them with "
                f"write_anchors(file, teacher, texts)."
            )
        return cls(anchors, args.similarity_temperature, _projection(setup), args.embedding_dims)

    def check(self, student: HeadSpec, teacher: HeadSpec) -> None:
        if self.anchors.shape[1] != teacher.embedding_width:
            raise ValueError(
                f"The anchors are {self.anchors.shape[1]} wide and the teacher's vectors {teacher.embedding_width}: "
                f"give the teacher's own vectors, from write_anchors(file, teacher, texts)."
            )
        if self.projection is None and student.embedding_width != teacher.embedding_width:
            raise ValueError(
                f"The student's vectors are {student.embedding_width} wide and the anchors "
                f"{teacher.embedding_width}: set project_embeddings=True, or use alpha_similarity, which needs no "
                f"anchors."
            )
        check_dims_fit(self.dims, student, teacher)

    def state(self) -> dict[str, object]:
        return {
            "anchors": fingerprint_of(self.anchors),
            "similarity_temperature": self.temperature,
            "projection": self.projection is not None,
            "dims": self.dims,
        }

    @without_autocast
    def forward(self, student: Signals, teacher: Signals, scored: ScoredItems) -> torch.Tensor:
        own, other = projected(self.projection, student.embeddings), teacher.embeddings
        target = self._log_distribution(other, other.shape[1])
        dims = self.dims or [own.shape[1]]
        return torch.stack([kl_sum(self._log_distribution(own, dim), target) for dim in dims]).mean()

    def _log_distribution(self, embeddings: torch.Tensor, dim: int) -> torch.Tensor:
        """`[texts, anchors]`, the log-probabilities of the anchors for each text."""
        own, anchors = (F.normalize(in_fp64(vectors[:, :dim]), dim=-1) for vectors in (embeddings, self.anchors))
        cosines = own @ anchors.T
        return (cosines / self.temperature).log_softmax(-1)


def kl_sum(student_log_probs: torch.Tensor, teacher_log_probs: torch.Tensor) -> torch.Tensor:
    """The sum over rows of the KL divergence from the teacher's distributions to the student's, in fp32.

    Args:
        student_log_probs: `[rows, classes]`.
        teacher_log_probs: `[rows, classes]`.
    """
    return (teacher_log_probs.exp() * (teacher_log_probs - student_log_probs)).sum().float()


def in_fp64(vectors: torch.Tensor) -> torch.Tensor:
    """The vectors in fp64, where the device has it.

    Dividing cosines by a low temperature multiplies their rounding: in fp32, the gradient would depend on how a step is
    split.
    """
    return vectors.float() if vectors.device.type == "mps" else vectors.double()


def projected(projection: Projection | None, embeddings: torch.Tensor) -> torch.Tensor:
    """The student's vectors in at least fp32, mapped to the teacher's width if there is a projection."""
    embeddings = at_least_fp32(embeddings)
    return embeddings if projection is None else at_least_fp32(projection(embeddings.to(projection.weight.dtype)))


def _projection(setup: Setup) -> Projection | None:
    if not setup.args.project_embeddings:
        return None
    student_width, teacher_width = setup.student.embedding_width, setup.teacher.embedding_width
    return Projection(student_width or 1, teacher_width or 1, seed=setup.args.seed)


def check_dims(dims: object) -> None:
    """Checks that `embedding_dims` is None or a list of different widths.

    Raises:
        ValueError: if it is not.
    """
    if dims is None:
        return
    is_list = isinstance(dims, list) and dims and all(type(dim) is int and dim > 0 for dim in dims)
    if not isinstance(dims, list) or not is_list or len(set(dims)) < len(dims):
        raise ValueError(f"embedding_dims={dims!r} should be a list of different widths, such as [384, 128, 64].")


def check_dims_fit(dims: Sequence[int] | None, *models: HeadSpec) -> None:
    """Checks that no width of `embedding_dims` is larger than the vectors.

    Raises:
        ValueError: if one is.
    """
    for model in models:
        if dims is not None and model.embedding_width is not None and max(dims) > model.embedding_width:
            raise ValueError(
                f"embedding_dims={list(dims)} has widths above {model.embedding_width}, the width of the vectors of "
                f"{model.model}."
            )


def check_temperature(temperature: float) -> None:
    """Checks `similarity_temperature`.

    Raises:
        ValueError: if it is not above 0.
    """
    if not temperature > 0:
        raise ValueError(f"similarity_temperature={temperature!r} should be above 0, such as 0.05.")
