"""What training optimises: the directional CLIP loss and the identity loss."""
