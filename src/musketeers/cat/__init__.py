"""Stage 2, one for all: the contrastive autoencoder."""
