"""PnP-DETR (Wang et al., ICCV 2021), with or without ENACT in its encoder."""
