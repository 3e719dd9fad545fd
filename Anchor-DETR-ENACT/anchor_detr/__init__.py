"""Anchor DETR (Wang et al., AAAI 2022) with ENACT in its encoder."""

from .recipe import DETECTOR

__all__ = ["DETECTOR"]
