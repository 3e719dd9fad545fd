"""Anchor DETR (Wang et al., AAAI 2022) with ENACT in its encoder."""
