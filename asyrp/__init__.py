"""Asyrp: editing images in the semantic latent space (h-space) of a frozen diffusion model."""
