"""Knowledge distillation with the HuggingFace `Trainer`.

The public names are listed in `__init__.pyi`. Each is imported on first use, so loading an exported model does not
import PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
