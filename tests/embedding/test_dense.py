"""Dense modules by principal components and by least squares, against NumPy and scikit-learn."""

import numpy as np
import pytest
import torch

from hf_distill import make_student
from hf_distill.embedding import fit_dense, reduce_width
from tests.conftest import make_texts
from tests.embedding.models import encode, library, make_embedding_model, make_sentence_transformer

FITTED = [f"{one} {two}" for one, two in zip(make_texts(60), make_texts(61)[1:], strict=True)]


def test_reduce_width_is_the_best_linear_map():
    """The products of reduced vectors are those of scikit-learn's TruncatedSVD."""
    from sklearn.decomposition import TruncatedSVD

    model = make_sentence_transformer(normalize=False)
    vectors = encode(model, FITTED).numpy().astype(np.float64)
    reduced = reduce_width(model, FITTED, 5)
    assert reduced.embedding_width == 5
    expected = TruncatedSVD(5, algorithm="arpack", random_state=0).fit(vectors).transform(vectors)
    own = encode(reduced, FITTED).numpy()
    np.testing.assert_allclose(own @ own.T, expected @ expected.T, atol=1e-4)
    assert encode(model, FITTED).shape[1] == 16  # the model does not change


def test_reduced_vectors_stay_normalized():
    reduced = reduce_width(make_embedding_model(), FITTED, 5)
    torch.testing.assert_close(encode(reduced).norm(dim=1), torch.ones(12))


def test_fit_dense_is_least_squares(tmp_path):
    teacher = make_embedding_model(normalize=False)
    student = make_student(teacher, hidden_size=8, num_attention_heads=1)
    fitted = fit_dense(student, teacher, FITTED)
    vectors, targets = encode(student, FITTED).double().numpy(), encode(teacher, FITTED).double().numpy()
    expected = vectors @ np.linalg.pinv(vectors, rcond=1e-5) @ targets
    np.testing.assert_allclose(encode(fitted, FITTED).numpy(), expected, atol=1e-4)
    fitted.save_pretrained(tmp_path)
    torch.testing.assert_close(encode(library.SentenceTransformer(str(tmp_path), device="cpu")), encode(fitted))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FITTED, 16), "width=16 should be above 0 and below 16"),
        ((FITTED[:5], 5), "There are 5 texts for 5 components"),
        ((["w5", " "], 1), "1 of 2 texts are empty, the first at index 1"),
    ],
)
def test_errors_of_reduce_width(arguments, message):
    with pytest.raises(ValueError, match=message):
        reduce_width(make_embedding_model(), *arguments)


def test_too_few_texts_to_fit():
    model = make_embedding_model()
    with pytest.raises(ValueError, match="There are 16 texts for vectors of width 16"):
        fit_dense(model, model, FITTED[:16])
