"""The class names of models, and classes in another order."""

from collections.abc import Sequence

from transformers import PreTrainedConfig


def label_names_of(config: PreTrainedConfig) -> list[str]:
    """Class names in the order of their numbers."""
    return [config.id2label[number] for number in range(config.num_labels)]


def columns_by_name(own: Sequence[str], label_names: Sequence[str], name: str) -> list[int]:
    """Index of each class of `label_names` among a model's own classes.

    Classes are matched by name, or by number if one side has only placeholder names (`LABEL_0`, ...).

    Raises:
        ValueError: if the model, called `name`, has other classes.
    """
    own, label_names = list(own), list(label_names)
    if sorted(own) == sorted(label_names):
        return [own.index(label) for label in label_names]
    if len(own) == len(label_names) and [f"LABEL_{number}" for number in range(len(own))] in (own, label_names):
        return list(range(len(own)))
    raise ValueError(
        f"{name} has the classes {', '.join(own)}, but {', '.join(label_names)} are needed: use a model with these "
        f"classes."
    )
