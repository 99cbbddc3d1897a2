"""What only a GPU can show; skipped, and said so, where there is none."""

import pytest
import torch
from golden_unets import settings

from asyrp import process
from models import build_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def test_the_loops_never_wait_for_the_device():
    unet, x_0 = build_unet(settings("ddpm")).cuda(), torch.zeros(1, 3, 32, 32, device="cuda")
    schedule, steps = process.Schedule.linear(), process.timesteps(4, 999)
    torch.cuda.set_sync_debug_mode("error")
    try:
        x_T = process.invert(unet, x_0, schedule, steps)
        process.generate(unet, x_T, schedule, steps, edit=lambda h, emb, t: h + 0.1, t_edit=500)
    finally:
        torch.cuda.set_sync_debug_mode("default")
