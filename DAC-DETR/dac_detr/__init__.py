"""DAC-DETR (Hu et al., NeurIPS 2023)."""
