"""Parts of the models: backbones, position embeddings, small layers; and their checkpoints."""
