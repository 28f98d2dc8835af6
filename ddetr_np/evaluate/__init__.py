"""From the model's outputs to detections, and from these to COCO's figures."""

from .coco_ap import Report, coco_figures
from .detection import Detections, detect
from .evaluation import evaluate
from .postprocess import postprocess

__all__ = ['Detections', 'Report', 'coco_figures', 'detect', 'evaluate', 'postprocess']
