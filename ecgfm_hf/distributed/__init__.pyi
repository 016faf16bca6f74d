from .ray_data import ECGFMEmbedder as ECGFMEmbedder
from .ray_data import ECGFMPredictor as ECGFMPredictor
from .ray_executor import ClusterError as ClusterError
from .ray_executor import RayExecutor as RayExecutor
