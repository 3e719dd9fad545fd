"""Deformable DETR (Zhu et al., ICLR 2021) and Sparse DETR (Roh et al., ICLR 2022)."""
