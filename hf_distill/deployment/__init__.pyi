from .export import Export, export_model
from .predictor import Predictor, load_predictor

__all__ = ["Export", "Predictor", "export_model", "load_predictor"]
