"""Post-processing, and COCO's average precision."""
