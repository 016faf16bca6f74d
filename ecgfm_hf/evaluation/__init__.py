"""
From scores to honest numbers: metrics, intervals over patients, thresholds, calibration, reports.

Nothing is imported until it is asked for. The plain functions need numpy alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
