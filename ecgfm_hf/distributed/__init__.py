"""
Beyond one machine: runs whose parts a Ray cluster writes, and classes for pipelines of `ray.data`.

Needs `ecgfm-hf[ray]`. A module is imported when one of its names is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
