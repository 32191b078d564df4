"""Networks of the literature as plain modules: AlexNet, VGG16, ResNet-18, MobileNetV2. Shapes only, no weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn


def _named(*parts: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(parts))


def alexnet(*, groups: int = 2) -> nn.Sequential:
    """AlexNet (Krizhevsky et al., NeurIPS 2012); `groups` 2 as on its two GPUs, 1 as PCNNA counts it.

    Padding 2 on the 224-pixel input gives the 55 x 55 output of the paper.
    """
    return _named(
        ("conv1", nn.Conv2d(3, 96, 11, stride=4, padding=2)), ("relu1", nn.ReLU()), ("pool1", nn.MaxPool2d(3, 2)),
        ("conv2", nn.Conv2d(96, 256, 5, padding=2, groups=groups)), ("relu2", nn.ReLU()), ("pool2", nn.MaxPool2d(3, 2)),
        ("conv3", nn.Conv2d(256, 384, 3, padding=1)), ("relu3", nn.ReLU()),
        ("conv4", nn.Conv2d(384, 384, 3, padding=1, groups=groups)), ("relu4", nn.ReLU()),
        ("conv5", nn.Conv2d(384, 256, 3, padding=1, groups=groups)), ("relu5", nn.ReLU()),
        ("pool5", nn.MaxPool2d(3, 2)), ("flatten", nn.Flatten()), ("fc6", nn.Linear(9216, 4096)), ("relu6", nn.ReLU()),
        ("fc7", nn.Linear(4096, 4096)), ("relu7", nn.ReLU()), ("fc8", nn.Linear(4096, 1000)),
    )  # fmt: skip


def vgg16() -> nn.Sequential:
    """VGG16, configuration D (Simonyan and Zisserman, ICLR 2015)."""
    parts: list[tuple[str, nn.Module]] = []
    channels = 3
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for index in range(1, depth + 1):
            parts += [
                (f"conv{block}_{index}", nn.Conv2d(channels, width, 3, padding=1)),
                (f"relu{block}_{index}", nn.ReLU()),
            ]
            channels = width
        parts.append((f"pool{block}", nn.MaxPool2d(2, 2)))
    parts.append(("flatten", nn.Flatten()))
    for name, (before, after) in {"fc6": (25088, 4096), "fc7": (4096, 4096), "fc8": (4096, 1000)}.items():
        parts.append((name, nn.Linear(before, after)))
    return _named(*parts)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut (He et al., CVPR 2016)."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != after:
            self.shortcut = _named(
                ("conv", nn.Conv2d(before, after, 1, stride, bias=False)), ("bn", nn.BatchNorm2d(after))
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, after, H/stride, W/stride]."""
        inside = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(inside + self.shortcut(x))  # type: ignore[no-any-return]


def resnet18() -> nn.Sequential:
    """ResNet-18 (He et al., CVPR 2016)."""
    parts: list[tuple[str, nn.Module]] = [
        ("conv1", nn.Conv2d(3, 64, 7, 2, 3, bias=False)), ("bn1", nn.BatchNorm2d(64)), ("relu", nn.ReLU()),
        ("maxpool", nn.MaxPool2d(3, 2, 1)),
    ]  # fmt: skip
    before = 64
    for number, width in enumerate([64, 128, 256, 512], start=1):
        for index, stride in enumerate([1 if number == 1 else 2, 1]):
            parts.append((f"layer{number}_{index}", BasicBlock(before, width, stride)))
            before = width
    parts += [("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("fc", nn.Linear(512, 1000))]
    return _named(*parts)


class InvertedResidual(nn.Module):
    """Expand, depthwise 3 x 3, project (Sandler et al., CVPR 2018)."""

    def __init__(self, before: int, after: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        expand = _convolution(before, inner, 1) if expansion != 1 else nn.Identity()
        self.body = _named(
            ("expand", expand), ("depthwise", _convolution(inner, inner, 3, stride, inner)),
            ("project", nn.Conv2d(inner, after, 1, bias=False)), ("bn", nn.BatchNorm2d(after)),
        )  # fmt: skip
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, [N, after, H/stride, W/stride]."""
        inside = self.body(x)
        return x + inside if self.shortcut else inside  # type: ignore[no-any-return]


def _convolution(before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return _named(
        ("conv", nn.Conv2d(before, after, kernel, stride, kernel // 2, groups=groups, bias=False)),
        ("bn", nn.BatchNorm2d(after)),
        ("relu", nn.ReLU6()),
    )


def mobilenet_v2() -> nn.Sequential:
    """MobileNetV2 at width 1.0 (Sandler et al., CVPR 2018)."""
    parts: list[tuple[str, nn.Module]] = [("stem", _convolution(3, 32, 3, 2))]
    before = 32
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for number, (expansion, width, depth, stride) in enumerate(stages, start=1):
        for index in range(depth):
            step = stride if index == 0 else 1
            parts.append((f"block{number}_{index}", InvertedResidual(before, width, step, expansion)))
            before = width
    parts += [("head", _convolution(320, 1280, 1)), ("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())]
    return _named(*parts, ("fc", nn.Linear(1280, 1000)))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "alexnet": alexnet,
    "alexnet-ungrouped": partial(alexnet, groups=1),
    "vgg16": vgg16,
    "resnet18": resnet18,
    "mobilenet_v2": mobilenet_v2,
}
