"""
From a dataset on disk to a store, and from a store to a model's inputs: sources, splits, labels, segments.

Nothing is imported until it is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
