"""Keeps the warnings of other libraries from a user who can do nothing about them."""

import logging
import os
import re
import sys
import warnings

WARNINGS = {
    "torchao": r"Failed to load .*\.so",  # of its extensions, those that are for other Pythons and GPUs
    "torch.utils._pytree": r"register_constant\(\) on Enum subclasses is deprecated",  # which torchao calls
    "bitsandbytes.backends.cpu.ops": r"Failed to load CPU gemm_4bit_forward",
    "transformers.modeling_utils": r"LOAD REPORT",  # of a new head, which is about to be trained
}
"""By logger, a pattern of the warnings that are left out."""

PROGRESS_BARS = {"TQDM_DELAY": ("1", "10"), "TQDM_MININTERVAL": ("0.1", "10")}
"""Defaults of tqdm in a terminal and elsewhere, in seconds: short work shows no bar, a log has few lines."""


def quiet_libraries() -> None:
    """Leaves out warnings of other libraries that a user can do nothing about. For programs, not for libraries.

    Call it first, before transformers and PyTorch are imported: some of them warn while they are imported. It leaves
    out deprecation and future warnings that are not about hf_distill, known warnings of torchao, PyTorch, bitsandbytes
    and transformers, and progress bars of short work. Errors, other warnings, and all warnings of hf_distill stay.
    Where Python is started with `-W` or PYTHONWARNINGS, its filter of warnings does not change.

    Example:
        >>> from hf_distill import quiet_libraries
        >>> quiet_libraries()
        >>> import transformers
    """
    for name, unheard in _FILTERS.items():
        logging.getLogger(name).addFilter(unheard)
    for name, (in_terminal, elsewhere) in PROGRESS_BARS.items():
        os.environ.setdefault(name, in_terminal if sys.stderr.isatty() else elsewhere)
    if not sys.warnoptions:
        for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", category=category, module=r"(?!hf_distill\b|__main__$)")
        # Trainer asks for pinned memory on every machine; without a GPU it has no effect.
        warnings.filterwarnings("ignore", message="'pin_memory' argument is set as true", category=UserWarning)


class _Unheard(logging.Filter):
    """Drops the warnings that match a pattern."""

    def __init__(self, pattern: str):
        super().__init__()
        self.pattern = re.compile(pattern)

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno > logging.WARNING or self.pattern.search(record.getMessage()) is None


_FILTERS = {name: _Unheard(pattern) for name, pattern in WARNINGS.items()}
