"""Files in: models, datasets and metrics, checked, with errors a user can act on."""

from edgescale.frontend.datasets import load_dataset
from edgescale.frontend.describe import Description, NodeFigures, describe
from edgescale.frontend.fingerprint import dataset_fingerprint, model_fingerprint
from edgescale.frontend.load import load_model, model_from_ir, save_model
from edgescale.frontend.metrics import METRICS, Metric, load_metric

__all__ = [
    "METRICS",
    "Description",
    "Metric",
    "NodeFigures",
    "dataset_fingerprint",
    "describe",
    "load_dataset",
    "load_metric",
    "load_model",
    "model_fingerprint",
    "model_from_ir",
    "save_model",
]
