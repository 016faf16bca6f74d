"""
Scores and embeddings of many recordings, in runs that can be resumed; export to ONNX.

Nothing is imported until it is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
