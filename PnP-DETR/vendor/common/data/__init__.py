"""From a dataset folder to batches: COCO annotations, images, augmentation, sampling, and the built-in shapes dataset."""
