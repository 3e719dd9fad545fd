"""DAC-DETR (Hu et al., NeurIPS 2023)."""

from .recipe import DETECTOR

__all__ = ["DETECTOR"]
