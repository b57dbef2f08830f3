"""After training: a student in, something that runs out. To load an export takes no PyTorch; to write one does."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
