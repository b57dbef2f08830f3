"""The sum and its gradient do not depend on the size of the pieces, and no piece exceeds the limit."""

import pytest
import torch

from hf_distill.training.scoring import pieces
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import scored_forward
from hf_distill.training.scoring.pieces import sum_over_pieces
from tests.conftest import collate, make_model, make_rows


def squares(logits, piece):
    return logits.square().sum(), torch.stack([logits.detach().sum(), logits.detach().abs().sum()])


@pytest.mark.parametrize("piece_size", [1, 5, 1000])
def test_vocabulary_head(family, piece_size):
    """Gradients of the backbone, of the head, and of the embeddings that the head is tied to."""
    model, inputs = make_model(family, "mlm"), collate(make_rows("mlm"))
    attended, kind = inputs["attention_mask"].bool(), find_head(model)
    inputs.pop("labels")
    whole = model(**inputs).logits[attended]
    (3 * whole.square().sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    output, _ = scored_forward(model, model, kind, inputs, kind.score(inputs, "attended"))
    sizes = []

    def of_piece(values, piece):
        sizes.append(len(values))
        assert torch.equal(values, output.head_inputs[piece])
        return squares(output.head(values), piece)

    total, figures = sum_over_pieces(of_piece, output.head_inputs, piece_size)
    (3 * total).backward()
    assert sum(sizes) == attended.sum()  # each position once, forward and backward
    assert max(sizes) <= piece_size
    torch.testing.assert_close(total, whole.square().sum())
    torch.testing.assert_close(figures, torch.stack([whole.sum(), whole.abs().sum()]), rtol=1e-4, atol=1e-3)
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=3e-4)


def test_pieces_of_pieces():
    """As the losses use it: chunks of values for the head, blocks of logits within."""
    torch.manual_seed(0)
    values, weight = torch.randn(11, 4, requires_grad=True), torch.randn(7, 4, requires_grad=True)
    expected = torch.autograd.grad((values @ weight.T).exp().sum(), [values, weight])

    def of_chunk(chunk, _):
        return sum_over_pieces(
            lambda block, _: (block.exp().sum(), block.detach().exp()[:, :2].sum(0)), chunk @ weight.T, 2
        )

    total, figures = sum_over_pieces(of_chunk, values, 5)
    torch.testing.assert_close(torch.autograd.grad(total, [values, weight]), expected)
    torch.testing.assert_close(figures, (values @ weight.T).exp()[:, :2].sum(0))


def test_no_values():
    values = torch.zeros(0, 3, requires_grad=True)
    total, figures = sum_over_pieces(squares, values, 2)
    total.backward()
    assert (total, figures.tolist(), values.grad.shape) == (0, [0, 0], (0, 3))


def test_without_gradients():
    values = torch.randn(5, 3, requires_grad=True)
    with torch.no_grad():
        total, _ = sum_over_pieces(squares, values, 2)
    assert not total.requires_grad
    torch.testing.assert_close(total, values.detach().square().sum())


def test_gradients_that_half_precision_would_lose():
    """The gradient of a piece is stored multiplied by the loss scale, like fp16 gradients."""
    values = torch.full((4, 2), 1.0, dtype=torch.float16, requires_grad=True)

    def tiny(piece, _):
        return piece.float().sum() * 1e-9, piece.detach().sum()

    scale = torch.tensor(2.0**16)
    total, _ = sum_over_pieces(tiny, values, 2, scale)
    (total * scale).backward()
    torch.testing.assert_close(values.grad.float(), torch.full((4, 2), 1e-9 * 2**16), rtol=1e-2, atol=0)


def test_differentiated_twice():
    values = torch.randn(4, 2, requires_grad=True)
    total, _ = sum_over_pieces(squares, values, 2)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        total.backward()


def test_tied_embeddings_add_their_gradient_in_place(monkeypatch):
    """A head that is also the embeddings has two gradients of its size in the backward pass, and not their sum too."""
    embeddings = torch.nn.Embedding(40, 8)
    kept = []
    apply = pieces._Differentiated.apply

    def remember(value, gradients, *rest):
        kept.extend(gradient.data_ptr() for gradient in gradients[1:])
        return apply(value, gradients, *rest)

    monkeypatch.setattr(pieces._Differentiated, "apply", remember)
    hidden = embeddings(torch.arange(12)) * 2.0

    def of_piece(values, piece):
        return (values @ embeddings.weight.T).log_softmax(-1)[:, 0].sum(), torch.zeros(1)

    total, _ = sum_over_pieces(of_piece, hidden, 5)
    total.backward()
    assert embeddings.weight.grad.data_ptr() in kept
    own = embeddings.weight.grad.clone()
    embeddings.weight.grad = None
    ((embeddings(torch.arange(12)) * 2.0) @ embeddings.weight.T).log_softmax(-1)[:, 0].sum().backward()
    assert torch.allclose(own, embeddings.weight.grad, atol=1e-6)
