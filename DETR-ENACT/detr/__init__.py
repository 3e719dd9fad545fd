"""DETR (Carion et al., ECCV 2020) with ENACT in its encoder."""
