"""The training loop, its state between epochs, and how it is stopped."""
