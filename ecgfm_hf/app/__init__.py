"""
A web page that scores one recording at a time: `ecgfm app`.

Nothing is imported until it is asked for; the page needs the extra `[app]` (gradio, captum, matplotlib).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
