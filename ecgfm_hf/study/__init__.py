"""
Studies: does ECG-FM help on these recordings, by how much, and with how many labels.

Modules are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
