"""
Share models on the Hub: what is uploaded, what is refused, the push itself, and model cards.

Nothing is imported before it is used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
