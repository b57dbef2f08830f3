"""Checks whether imported targets fit the student."""

from dataclasses import replace

from hf_distill.training.scoring.alignment import HeadSpec
from hf_distill.training.teacher.columns import Source


def imported_spec(source: Source, student: HeadSpec) -> HeadSpec:
    """Describes the outputs of an imported teacher, with the student's values where the targets have none.

    Raises:
        ValueError: if the student has another kind of head, another problem type, or a smaller vocabulary.
    """
    spec = source.head_spec
    kinds = (student.auto_class, student.distribution)
    if kinds != (spec.auto_class, spec.distribution):
        of = "" if spec.problem_type is None else f" and problem_type={spec.problem_type!r}"
        own = "" if student.problem_type is None else f" and problem_type={student.problem_type!r}"
        raise ValueError(
            f"The targets of {source} are for a model with the head of {spec.auto_class}{of}, but the student is a "
            f"{student.model} with the head of {student.auto_class}{own}: use another student, or another format of "
            f"import_teacher_targets."
        )
    if spec.vocab_size is not None and (student.vocab_size or 0) < spec.vocab_size:
        raise ValueError(
            f"The student's vocabulary has {student.vocab_size} entries, but the tokenizer of the imported targets has "
            f"{spec.vocab_size}: student and teacher need the same tokenizer."
        )
    return replace(spec, vocab_size=student.vocab_size, decoder_start_token_id=student.decoder_start_token_id)
