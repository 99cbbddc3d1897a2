"""Files of the golden CLIP, in OpenAI's layout, and what is said of a file that is none."""

import pytest
import torch
from golden_weights import filled, golden_json

from losses.clip_loss import ClipLoss
from utils.errors import UserError


def openai_weights():
    return filled(golden_json("keys_clip.json"), unet=False)


class Archived(torch.nn.Module):
    """A module that holds tensors under given dotted names, as OpenAI's TorchScript archives do."""

    def __init__(self, tensors):
        super().__init__()
        for head in dict.fromkeys(key.split(".")[0] for key in tensors):
            inner = {key.removeprefix(f"{head}."): v for key, v in tensors.items() if key.split(".")[0] == head}
            if head in inner:
                self.register_buffer(head, inner[head])
            else:
                self.add_module(head, Archived(inner))

    def forward(self, x: torch.Tensor):
        return x


def message_of(model):
    """The one line with which ClipLoss refuses a model."""
    with pytest.raises(UserError) as caught:
        ClipLoss(model)
    message = str(caught.value)
    assert "\n" not in message
    return message
