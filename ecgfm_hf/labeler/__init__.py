"""
Labels from free-text ECG reports.

[`Labeler.from_preset`] has tables of this package: `mimic17` gives the 17 labels of the published classifier for
MIMIC-IV-ECG, `mimic17-clinical` reads reports as a clinician would. Tables may also be your own
([`Labeler.from_definition`]) or the tables of ECG-FM's labeler, from your clone of the ECG-FM repository
([`Labeler.from_original`]).
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
