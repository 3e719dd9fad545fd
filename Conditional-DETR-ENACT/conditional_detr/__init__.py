"""Conditional DETR (Meng et al., ICCV 2021) with ENACT in its encoder."""

from .recipe import DETECTOR

__all__ = ["DETECTOR"]
