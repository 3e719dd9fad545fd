"""Conditional DETR (Meng et al., ICCV 2021) with ENACT in its encoder."""
