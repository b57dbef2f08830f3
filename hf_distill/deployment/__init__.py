"""Exports students, and runs models and exports. Writing an export needs PyTorch; loading an ONNX export does not."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
