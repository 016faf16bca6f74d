"""Model cards: built from a model folder, an evaluation, and the details that only a person can give."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
