"""Model cards: made from what is known of a model, and asking for what only a person knows."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
