"""Knowledge distillation with the HuggingFace `Trainer`.

The public names are in `__init__.pyi`. Each is imported when it is asked for: whoever loads an exported model does not
wait for PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
