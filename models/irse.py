"""IR-SE50: the face recogniser behind the identity loss.

An improved residual network of 50 layers (Deng et al., "ArcFace", CVPR 2019, section 3.1) with squeeze-and-excitation (Hu et
al., "Squeeze-and-Excitation Networks", CVPR 2018). Module names follow the published weights (`model_ir_se50.pth`), so a
`state_dict` loads strictly.
"""

import torch.nn.functional as F
from torch import nn

# (channels, number of blocks) of the four stages; the first block of each halves the resolution.
STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))
INPUT_SIZE = 112
EMBEDDING = 512


class SqueezeExcite(nn.Module):
    """Scales each channel by a factor in (0, 1) computed from the means of all channels."""

    def __init__(self, ch, reduction=16):
        super().__init__()
        self.fc1 = nn.Conv2d(ch, ch // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(ch // reduction, ch, 1, bias=False)

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        return x * self.fc2(F.relu(self.fc1(y))).sigmoid()


class Bottleneck(nn.Module):
    def __init__(self, in_ch, out_ch, stride):
        super().__init__()
        if in_ch != out_ch:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(in_ch, out_ch, 1, stride, bias=False), nn.BatchNorm2d(out_ch))
        else:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_ch),
            nn.Conv2d(in_ch, out_ch, 3, padding=1, bias=False),
            nn.PReLU(out_ch),
            nn.Conv2d(out_ch, out_ch, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_ch),
            SqueezeExcite(out_ch),
        )

    def forward(self, x):
        return self.shortcut_layer(x) + self.res_layer(x)


class IRSE50(nn.Module):
    """`net(x)`: aligned faces x (B, 3, 112, 112) in [-1, 1] -> embeddings (B, 512) of unit length."""

    def __init__(self):
        super().__init__()
        first = STAGES[0][0]
        self.input_layer = nn.Sequential(nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first), nn.PReLU(first))
        blocks, current = [], first
        for ch, count in STAGES:
            for i in range(count):
                blocks.append(Bottleneck(current, ch, stride=2 if i == 0 else 1))
                current = ch
        self.body = nn.Sequential(*blocks)
        side = INPUT_SIZE // 2 ** len(STAGES)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(current),
            nn.Dropout(0.6),
            nn.Flatten(),
            nn.Linear(current * side**2, EMBEDDING),
            nn.BatchNorm1d(EMBEDDING),
        )

    def forward(self, x):
        return F.normalize(self.output_layer(self.body(self.input_layer(x))), dim=1)
