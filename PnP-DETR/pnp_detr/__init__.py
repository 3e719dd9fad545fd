"""PnP-DETR (Wang et al., ICCV 2021), with or without ENACT in its encoder."""

from .recipe import DETECTOR

__all__ = ["DETECTOR"]
