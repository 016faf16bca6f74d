"""
What a score rests on, and how it looks on paper: saliency and clinical plots.

Nothing is imported until it is asked for; saliency needs the extra `[saliency]` (captum), plots `[plots]` (matplotlib).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
