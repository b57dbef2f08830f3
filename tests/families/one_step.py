"""One distilling step of a tiny pair: what the trainer computes, and the three losses written down by hand."""

import inspect

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from tests.families.tiny import CannotBuildError, batches, build, kind_of

TEMPERATURE, ALPHAS = 2.0, {"kl": 0.7, "task": 0.4, "cos": 0.3}
LABELS = ("labels", "start_positions", "end_positions")


class RefusedError(Exception):
    """The trainer refuses a pair at construction, with its own message."""


def one_step(auto_class: str, class_name: str, output_dir: str) -> bool:
    """Compares loss and gradient of a step with values computed by hand.

    Returns:
        True if a vocabulary head ran only on the scored positions, and for other heads.

    Raises:
        CannotBuildError: if no tiny model can be made, or the model does not run.
        RefusedError: if the trainer refuses the models.
        AssertionError: if the numbers differ.
    """
    try:
        teacher, student = (build(class_name, seed) for seed in (0, 1))
    except CannotBuildError:
        raise
    except Exception as error:
        raise CannotBuildError(f"{type(error).__name__}: {error}") from error
    alphas = dict(ALPHAS)
    try:
        trainer = make_trainer(teacher, student, output_dir, alphas)
    except ValueError as error:
        raise RefusedError(str(error)) from error
    kind = kind_of(auto_class, student)
    tried = list(batches(kind, student))
    batch = next((batch for batch in tried if _why_not(student, batch) is None), None)
    if batch is None:
        raise CannotBuildError(f"does not run: {_why_not(student, tried[0])}")
    with torch.no_grad():
        _, states = whole(student, batch)
    if of_states(batch, kind, states[..., 0]).shape != states.shape[:2]:
        alphas["cos"] = 0.0  # hidden states that do not belong to tokens are refused
        trainer = make_trainer(teacher, student, output_dir, alphas)
    try:
        expected, expected_gradient = by_hand(teacher, student, batch, kind, alphas)
    except AssertionError as error:  # Reformer needs training mode for a backward pass
        raise CannotBuildError(f"does not run backward: {error}") from error
    loss = trainer.compute_loss(student, batch)
    loss.backward()
    assert expected.isfinite()
    torch.testing.assert_close(loss.detach(), expected, rtol=1e-5, atol=1e-5)
    gradient = _take_gradient(student)
    assert (gradient - expected_gradient).norm() <= 1e-4 * expected_gradient.norm()
    assert expected_gradient.norm() > 1e-4
    return trainer.head.runs_alone or not trainer.head.over_vocabulary


def make_trainer(teacher, student, output_dir, alphas):
    return DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationTrainingArguments(
            output_dir=output_dir,
            use_cpu=True,
            report_to="none",
            temperature=TEMPERATURE,
            **{f"alpha_{name}": alpha for name, alpha in alphas.items()},
        ),
    )


def by_hand(teacher, student, batch, kind, alphas):
    """The three losses from full logits, and the gradient."""
    with torch.no_grad():
        teacher_output, teacher_states = whole(teacher, batch)
    output, states = whole(student, batch)
    if kind == "QuestionAnswering":
        kl, task = answers(output, teacher_output, batch)
    else:
        labels = batch["labels"]
        if kind == "CausalLM" and type(student).__name__ != "XLNetLMHeadModel":
            labels = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
        logits, teacher_logits = output["logits"], teacher_output["logits"]
        chosen = labels != -100
        kl_chosen = chosen if logits.ndim == 3 else torch.ones_like(chosen)
        kl = TEMPERATURE**2 * divergence(logits[kl_chosen], teacher_logits[kl_chosen])
        task = F.cross_entropy(logits[chosen].float(), labels[chosen])
    loss = alphas["kl"] * kl + alphas["task"] * task
    if alphas["cos"]:
        distance = 1 - F.cosine_similarity(states, teacher_states, dim=-1)
        loss = loss + alphas["cos"] * (distance * of_states(batch, kind, distance)).sum()
    loss.backward()
    return loss.detach(), _take_gradient(student)


def divergence(logits, teacher_logits):
    """The mean KL over rows at the temperature."""
    log_p, log_q = ((values.float() / TEMPERATURE).log_softmax(-1) for values in (logits, teacher_logits))
    return (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def answers(output, teacher_output, batch):
    kls, tasks = [], []
    for side in ("start", "end"):
        for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
            logits = output[f"{side}_logits"][row, :length].unsqueeze(0)
            kls.append(TEMPERATURE**2 * divergence(logits, teacher_output[f"{side}_logits"][row, :length].unsqueeze(0)))
            label = batch[f"{side}_positions"][row : row + 1]
            if 0 <= label < length:
                tasks.append(F.cross_entropy(logits.float(), label))
    return sum(kls) / len(kls), sum(tasks) / len(tasks)


def of_states(batch, kind, distance):
    """Weight of each state in the cosine mean: over attended tokens, or over whole examples."""
    if kind == "Seq2SeqLM":
        attended = (batch["labels"] != -100).float()
    elif "attention_mask" in batch:
        attended = batch["attention_mask"].float()
    else:
        return torch.full_like(distance, 1 / distance.numel())
    return attended / attended.sum()


def whole(model: PreTrainedModel, batch):
    """The model's own logits for all positions, and its last hidden states `[batch, length, width]`."""
    inputs = {name: values for name, values in batch.items() if name in _inputs(model) and name not in LABELS}
    if model.config.is_encoder_decoder and "decoder_input_ids" not in inputs and _has_targets(batch):
        inputs["labels"] = batch["labels"]  # the model itself makes what the decoder reads
    model.config.use_cache = False  # as in training: FSMT's decoder looks ahead where it keeps a cache
    seen = []
    hooks = [
        module.register_forward_hook(lambda module, args, output: seen.append((module, output)))
        for module in model.modules()
        if module is not model
    ]
    try:
        output = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return output, last_states(model, output, seen)


def last_states(model, output, seen):
    """The last of the modules that returned `last_hidden_state` and are not inside another one."""
    states = [(module, out["last_hidden_state"]) for module, out in seen if "last_hidden_state" in _keys(out)]
    states = states[-1][1]
    return states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


def _has_targets(batch) -> bool:
    return "labels" in batch and batch["labels"].ndim == 2


def _keys(output):
    return output.keys() if hasattr(output, "keys") else ()


def _inputs(model):
    return inspect.signature(model.forward).parameters


def _why_not(model, batch) -> Exception | None:
    try:
        with torch.no_grad():
            output, _ = whole(model, batch)
        if _has_targets(batch) and output["logits"].shape[:2] != batch["labels"].shape:
            raise ValueError(f"gives logits {list(output['logits'].shape)} for labels {list(batch['labels'].shape)}")
    except Exception as error:
        return error


def _take_gradient(model):
    gradient = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in model.parameters()])
    model.zero_grad()
    return gradient
