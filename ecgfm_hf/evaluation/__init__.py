"""
Metrics, intervals over patients, thresholds, calibration and reports.

Modules are imported on first use. The metrics need only numpy.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# In the folder of an evaluation.
PREDICTIONS_FILE, METRICS_FILE, REPORT_FILE = "predictions.parquet", "metrics.json", "report.html"
