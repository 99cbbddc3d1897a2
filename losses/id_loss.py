"""The identity loss L_id: the distance by which an edit moves a face in the embedding space of a face recogniser."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from models.irse import INPUT_SIZE, IRSE50
from utils.errors import UserError
from utils.tensors import load, load_strictly, state_dict_of

IMAGE_SIZE = 256
# Crop of the face in an aligned 256 px portrait of CelebA-HQ or FFHQ.
ROWS, COLUMNS = slice(35, 223), slice(32, 220)


class IdLoss(nn.Module):
    """L_id = 1 - <R(source), R(edited)> with R the IR-SE50 embedding of the face (as in StyleCLIP and the 2023 release).

    weights: file of the published face recogniser. Raises UserError if it is missing or does not fit.
    """

    def __init__(self, weights: Path | str, device: torch.device | str = "cpu") -> None:
        super().__init__()
        try:
            contents = load(weights)
        except UserError as error:
            raise UserError(
                f"the identity loss needs the IR-SE50 face recogniser: {error}, or leave out --use_id_loss"
            ) from error
        net = IRSE50()
        load_strictly(net, state_dict_of(contents, weights), weights, "the IR-SE50 face recogniser")
        self.net = net.eval().requires_grad_(False).to(device)

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> unit embeddings (B, 512); differentiable.

        The crop is defined for 256 px; other sizes are resized to that first (bilinear, antialiased).
        """
        if images.shape[2:] != (IMAGE_SIZE, IMAGE_SIZE):
            images = F.interpolate(images, size=(IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", antialias=True)
        return self.net(F.adaptive_avg_pool2d(images[:, :, ROWS, COLUMNS], INPUT_SIZE))

    def forward(self, source_images: torch.Tensor, edited_images: torch.Tensor) -> torch.Tensor:
        """Two batches (B, 3, H, W) in [-1, 1], compared pairwise -> the mean loss, a scalar in [0, 2]."""
        return (1 - (self.embed(source_images) * self.embed(edited_images)).sum(-1)).mean()
