"""DETR (Carion et al., ECCV 2020) with ENACT in its encoder."""

from .recipe import DETECTOR

__all__ = ["DETECTOR"]
