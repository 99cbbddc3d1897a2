"""The CLIP of a run, loaded only when something has to be encoded."""

from functools import cached_property

import torch

from asyrp import store
from losses.clip_loss import ClipLoss, files_of_clip
from utils.files import stamp


class Clip:
    """A CLIP by name or file (see `ClipLoss`), not loaded if the store already has the result.

    The store holds its identity, under the paths, sizes and modification times of its files, and the cosine of two prompts,
    under the identity. The constructor raises UserError if there is no such model or it cannot be downloaded; damaged files
    are reported when it is loaded.
    """

    def __init__(self, name, device, kept):
        self.name, self.device, self.store = name, device, kept
        self.files = files_of_clip(name)

    @cached_property
    def loss(self):
        """The ClipLoss."""
        return ClipLoss(self.name, self.device)

    @cached_property
    def identity(self):
        """A string that depends on its weights and settings: `ClipLoss.identity`."""
        key = store.clip_key([[str(path.resolve()), *stamp(path)] for path in self.files])
        found = self.store.read("clip", key, {"identity": (8,)})
        if found is None:
            found = {"identity": torch.frombuffer(bytearray.fromhex(self.loss.identity()), dtype=torch.uint8)}
            self.store.write("clip", key, found)
        return bytes(found["identity"].tolist()).hex()

    def cosine(self, src, trg):
        """Cosine of two prompts' features -> float in [-1, 1]: `ClipLoss.cosine`."""
        key = store.cosine_key(self.identity, src, trg)
        found = self.store.read("cosine", key, {"cosine": (1,)})
        if found is None:
            found = {"cosine": torch.tensor([self.loss.cosine(src, trg)], dtype=torch.float64)}
            self.store.write("cosine", key, found)
        return found["cosine"].item()
