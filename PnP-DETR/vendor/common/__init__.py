"""What the detectors share: data, models, losses, training, evaluation, output, and the command line. It names no detector."""
