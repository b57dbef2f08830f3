"""Cuts the vocabulary of a model, and checks the result."""

import copy
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from hf_distill.hub.push import public_name, revision_on_hub
from hf_distill.student.architectures import example_inputs, skeleton
from hf_distill.student.cutting import leave_out_what_is_missing, load_parts
from hf_distill.student.proof import differences, evaluating, is_rounding, run, run_whole
from hf_distill.student.vocabulary.config_ids import remap, token_ids, vocabulary_size, with_vocabulary
from hf_distill.version import __version__


def config_ids(model: PreTrainedModel) -> set[int]:
    """The tokens that the config and the generation config of the model refer to."""
    generation_config = model.generation_config if model.can_generate() else None
    return token_ids(model.config, generation_config, vocabulary_size(model.config))


def vocabulary_places(model: PreTrainedModel) -> dict[str, int]:
    """The weights and buffers that grow with the vocabulary, and the dimension of each that grows.

    Raises:
        ValueError: if there are none, or if a weight does not grow by one row for one token.
    """
    size = vocabulary_size(model.config)
    try:
        shapes, larger = (
            {name: tuple(weight.shape) for name, weight in skeleton(type(model), config).state_dict().items()}
            for config in (model.config, with_vocabulary(model.config, size, size + 1))
        )
    except Exception as error:  # model code may raise anything for a config that it was not made for
        raise ValueError(f"{type(model).__name__} cannot have another number of tokens than {size}: {error}") from error
    places = {}
    for name, weight in model.state_dict().items():
        if name not in shapes or shapes[name] == larger.get(name):
            continue
        grown = [dim for dim, (new, old) in enumerate(zip(larger[name], shapes[name], strict=True)) if new != old]
        if len(grown) != 1 or shapes[name][grown[0]] != size or weight.shape != shapes[name]:
            raise ValueError(
                f"{type(model).__name__} cannot be trimmed: {name} has the shape {tuple(weight.shape)}, but its config "
                f"makes it {shapes[name]} for {size} tokens and {larger[name]} for {size + 1}. Every weight must have "
                f"one row for each of the {size} tokens in config.vocab_size."
            )
        places[name] = grown[0]
    if not places:
        raise ValueError(
            f"{type(model).__name__} has no weight with one row for each of its {size} tokens: leave its vocabulary as "
            f"it is."
        )
    return places


def cut_vocabulary(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """Makes a model of the same class with only these tokens.

    Token ids in the config and the generation config get their new values.

    Args:
        model: the model to cut. It does not change, and the result shares no memory with it.
        kept: the old id for each new id. It must contain every id that the configs refer to.

    Raises:
        ValueError: if the vocabulary does not shape the weights row by row, if an id is unknown or repeated, if one of
            the configs is missing, or if weights that the config ties differ.
    """
    size = vocabulary_size(model.config)
    is_id = {token_id: isinstance(token_id, int) and 0 <= token_id < size for token_id in kept}
    if len(is_id) < len(kept) or not all(is_id.values()):
        wrong = [token_id for token_id, is_right in is_id.items() if not is_right] or "some id twice"
        raise ValueError(
            f"The tokens to keep have {wrong}, but must be different ids from 0 to {size - 1}: give "
            f"trim_vocabulary(...).kept, which comes with the tokenizer that fits."
        )
    if missing := config_ids(model) - set(kept):
        raise ValueError(
            f"The configs of this {type(model).__name__} refer to the tokens {sorted(missing)}: keep them."
        )
    places = vocabulary_places(model)
    new_ids = {old: new for new, old in enumerate(kept)}
    config = with_vocabulary(model.config, size, len(kept))
    remap(config, new_ids, len(kept))
    config.distilled_from = _provenance(model, len(kept), size)
    student = skeleton(type(model), config, model.device, model.dtype)
    leave_out_what_is_missing(student, model, [])
    rows = torch.tensor(kept, device=model.device)

    def kept_rows(name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.index_select(places[name], rows) if name in places else weight

    load_parts(student, model.state_dict(), kept_rows)
    if model.can_generate():
        student.generation_config = copy.deepcopy(model.generation_config)
        remap(student.generation_config, new_ids, len(kept))
    return student.eval()


def prove_vocabulary(student: PreTrainedModel, model: PreTrainedModel, kept: Sequence[int]) -> None:
    """Runs both models on the same kept tokens and compares all outputs, logits only at the kept tokens.

    Raises:
        ValueError: if the outputs differ, or if the model does not run on a few tokens.
    """
    with evaluating(model), evaluating(student), torch.random.fork_rng():
        torch.manual_seed(0)
        inputs, student_inputs = _inputs(model, kept)
        try:
            expected, below_head = run_whole(model, inputs)
            actual = run(student.base_model if below_head else student, student_inputs)
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} does not run on {', '.join(inputs)}, so the trimmed model could not be "
                f"checked: {error}. Leave its vocabulary as it is."
            ) from error
    rows = torch.tensor(kept, device=model.device)

    def at_kept_tokens(values: torch.Tensor, own: torch.Tensor) -> list[torch.Tensor]:
        return [values if values.shape == own.shape else values.index_select(-1, rows)]

    for name, difference in differences(expected, actual, at_kept_tokens).items():
        if not is_rounding(difference, model.dtype):
            raise ValueError(
                f"The {name} of the trimmed {type(model).__name__} do not match the model's (relative difference "
                f"{difference:.1e}): it uses token ids in a way that hf_distill does not support. Leave its vocabulary "
                f"as it is."
            )


def _inputs(model: PreTrainedModel, kept: Sequence[int]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The same small batch for the model and for the trimmed one. No token has a special meaning, except the last."""
    special = config_ids(model)
    ordinary = [new for new, old in enumerate(kept) if old not in special] or list(range(len(kept)))
    eos = getattr(model.config.get_text_config(), "eos_token_id", None)
    old_ids = torch.tensor(kept, device=model.device)
    inputs = example_inputs(model)
    student_inputs = dict(inputs)
    for name in ("input_ids", "decoder_input_ids"):
        if name in inputs:
            choice = torch.randint(len(ordinary), inputs[name].shape)
            new_ids = torch.tensor(ordinary)[choice].to(model.device)
            if eos in kept:  # the classifiers of BART and T5 read its position
                new_ids[:, -1] = kept.index(eos)
            student_inputs[name], inputs[name] = new_ids, old_ids[new_ids]
    return inputs, student_inputs


def _provenance(model: PreTrainedModel, kept: int, size: int) -> dict[str, object]:
    provenance = getattr(model.config, "distilled_from", None) or {
        "teacher": public_name(model.name_or_path),
        "revision": revision_on_hub(model),
        "hf_distill_version": __version__,
    }
    original = provenance.get("vocabulary", {}).get("of", size)
    return {**provenance, "vocabulary": {"kept": kept, "of": original}}
