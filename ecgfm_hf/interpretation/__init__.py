"""
Saliency of a score, and 12-lead pages for print.

Modules are imported on first use. Saliency needs the extra `[saliency]` (captum), plots `[plots]` (matplotlib).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
