"""
A synthetic cohort: labelled 12-lead recordings whose truth is known, for demonstrations, tests and benchmarks.

No recording comes from a person, and nothing measured on the cohort applies to patients. `settings.py` has the labels,
their thresholds and the frozen defaults of the population.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
