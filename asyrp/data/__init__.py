"""Images on disk -> tensors, and the latents that belong to them."""
