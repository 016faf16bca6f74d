"""
A synthetic cohort: labelled 12-lead recordings whose truth is known, for demonstrations, tests and benchmarks.

Nothing in it comes from a person, and nothing measured on it says anything about patients. `settings.py` has the
labels, their thresholds and the frozen defaults of the population. Nothing is imported until it is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
