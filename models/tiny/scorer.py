"""Reads the objects back from an image: a small network that stands in for GenEval's detector.

It looks at stride 16, where centres of neighbouring objects are at least three cells apart, and says for each cell
how near a centre is, which shape and colour lie there, and how far the centre is. The stem strides by 4 at once:
most of the cost of a small network lies in its first layers. It is trained on drawings made a little worse in
the ways a decoder makes them worse: otherwise it would read noise and blur, not objects.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from .render import SceneTensors, render, take, to_tensors
from .scenes import IMAGE_SIZE, MAX_OBJECTS, Detection, sample_scenes
from .vocabulary import COLOURS, SHAPES

GRID = 16  # cells a side
CELL = IMAGE_SIZE / GRID  # px
TOLERANCE_PX = 12.0  # how far a detected centre may be off in `exact_match`

_HEAT_SIGMA = 0.8  # cells; width of the bump the network draws at a centre
_THRESHOLD = 0.4  # a true centre has a heat of at least 0.67, wherever it lies in its cell
_PRESAMPLED = 100_000
_EVALUATION_BATCH = 100


class ScorerOutput(NamedTuple):
    """What the network says of each cell of the grid, row by row.

    Attributes:
        heat: `[n, 16, 16]`, logit of being at an object's centre.
        shape: `[n, 8, 16, 16]` logits.
        colour: `[n, 8, 16, 16]` logits.
        offset: `[n, 2, 16, 16]`, from the cell's middle to the centre, x then y, in cells.
    """

    heat: Tensor
    shape: Tensor
    colour: Tensor
    offset: Tensor


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class _Block(nn.Module):
    """Residual block: a wide depthwise convolution gathers, two pointwise ones decide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.Conv2d(width, 2 * width, 1),
            nn.ReLU(),
            nn.Conv2d(2 * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        decided: Tensor = self.body(x)
        return x + decided


class Scorer(nn.Module):
    """The network, 0.2 M parameters."""

    def __init__(self, width: int = 96, blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(3, 24, 7, 4), _convolution(24, 48, 3, 2), _convolution(48, width, 3, 2))
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.head = nn.Conv2d(width, 1 + len(SHAPES) + len(COLOURS) + 2, 1)
        # nearly every cell is empty: start from there, or the first steps only learn that
        nn.init.constant_(self.head.bias[:1], -3.0)  # type: ignore[index]

    def forward(self, images: Tensor) -> ScorerOutput:
        """Args: `images` `[n, 3, 256, 256]`, RGB between -1 and 1. Returns fp32 maps."""
        cells: Tensor = self.head(self.blocks(self.stem(images))).float()
        heat, shape, colour, offset = torch.split(cells, [1, len(SHAPES), len(COLOURS), 2], dim=1)
        return ScorerOutput(heat[:, 0], shape, colour, offset)


def scorer_loss(outputs: ScorerOutput, scenes: SceneTensors) -> Tensor:
    """Mean over the scenes' objects of heat, class and offset losses; the last two only close to a centre.

    Args:
        outputs: For n images.
        scenes: The n scenes they show, on the same device.

    Returns:
        A scalar.
    """
    device = outputs.heat.device
    middle = torch.arange(GRID, device=device) + 0.5
    # cells from each cell's middle to each object's centre, [n, 4, 16, 16]
    across = (scenes["x"] / CELL)[..., None, None] - middle
    down = (scenes["y"] / CELL)[..., None, None] - middle[:, None]
    heat = torch.exp(-(across**2 + down**2) / (2 * _HEAT_SIGMA**2))
    heat = heat * (torch.arange(MAX_OBJECTS, device=device) < scenes["count"][:, None])[..., None, None]
    target, owner = heat.max(dim=1)  # [n, 16, 16]: the nearest object's heat, and which it is
    weight = target * (target > 0.2)

    def of_owner(values: Tensor) -> Tensor:
        return values.gather(1, owner.flatten(1)).view_as(owner)

    shape = F.cross_entropy(outputs.shape, of_owner(scenes["shape"]), reduction="none")
    colour = F.cross_entropy(outputs.colour, of_owner(scenes["colour"]), reduction="none")
    offset = torch.stack([of_owner(scenes["x"]) / CELL - middle, of_owner(scenes["y"]) / CELL - middle[:, None]], dim=1)
    distance = F.smooth_l1_loss(outputs.offset, offset, reduction="none", beta=0.1).sum(1)
    # less the entropy of the soft target, so that a perfect answer costs 0
    entropy = torch.xlogy(target, target) + torch.xlogy(1 - target, 1 - target)
    presence = F.binary_cross_entropy_with_logits(outputs.heat, target, reduction="none") + entropy
    return presence.sum() / scenes["count"].sum() + ((shape + colour + distance) * weight).sum() / weight.sum()


def decode(outputs: ScorerOutput) -> list[list[Detection]]:
    """Objects of each image, the surest first: cells that are warm and the warmest of their 3x3 neighbourhood."""
    heat = torch.sigmoid(outputs.heat)
    peak = (heat == F.max_pool2d(heat[:, None], 3, 1, 1)[:, 0]) & (heat > _THRESHOLD)
    found: list[list[Detection]] = [[] for _ in range(len(heat))]
    index, row, column = peak.nonzero(as_tuple=True)
    confidence = heat[index, row, column]
    offset = outputs.offset[index, :, row, column]
    x, y = (column + 0.5 + offset[:, 0]) * CELL, (row + 0.5 + offset[:, 1]) * CELL
    shape, colour = (logits[index, :, row, column].argmax(1) for logits in (outputs.shape, outputs.colour))
    columns = (index, shape, colour, x, y, confidence)
    for image, s, c, px, py, sure in zip(*(column.tolist() for column in columns), strict=True):
        found[image].append(Detection(SHAPES[s], COLOURS[c], px, py, sure))
    return [sorted(detections, key=lambda one: -one.confidence) for detections in found]


def exact_match(detections: Sequence[Detection], scene: Sequence[Detection]) -> bool:
    """Whether the detections are the scene's objects, one for one: same shape, same colour, centre within 12 px.

    Args:
        detections: From `decode`, of one image.
        scene: What the image shows, from `PackedScenes.objects`.
    """
    left = list(detections)
    for truth in scene:
        near = [
            one
            for one in left
            if (one.shape, one.colour) == (truth.shape, truth.colour)
            and math.hypot(one.x - truth.x, one.y - truth.y) <= TOLERANCE_PX
        ]
        if not near:
            return False
        left.remove(min(near, key=lambda one: math.hypot(one.x - truth.x, one.y - truth.y)))
    return not left


def _blemish(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise fine and coarse, blur and a change of brightness, each of random strength, on a random half."""
    n = len(images)

    def strength(most: float) -> Tensor:
        return torch.rand(n, 1, 1, 1, device=images.device, generator=generator) * most

    def noise(side: int) -> Tensor:
        return torch.randn(n, 3, side, side, device=images.device, generator=generator)

    blurred = torch.lerp(images, F.avg_pool2d(images, 5, 1, 2, count_include_pad=False), strength(1.0))
    # a decoder's errors come in blotches of its own stride as well as in pixels
    blotches = F.interpolate(noise(IMAGE_SIZE // 8), scale_factor=8.0, mode="bilinear")
    worse = blurred + noise(IMAGE_SIZE) * strength(0.1) + blotches * strength(0.12)
    worse = worse * (0.9 + strength(0.2)) + (strength(0.12) - 0.06)
    return torch.where(strength(1.0) < 0.5, worse.clamp(-1, 1), images)


def _optimiser(scorer: Scorer, steps: int, learning_rate: float) -> tuple[AdamW, LambdaLR]:
    """AdamW with a short warm-up and a cosine decay to zero."""
    optimiser = AdamW(scorer.parameters(), lr=learning_rate, weight_decay=0.02)
    warm_up = max(1, min(100, steps // 10))

    def rate(step: int) -> float:
        return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))

    return optimiser, LambdaLR(optimiser, rate)


def train_scorer(
    device: torch.device | str,
    *,
    steps: int,
    batch: int,
    generator: torch.Generator,
    log: Callable[[str], None] | None = None,
    learning_rate: float = 3e-3,
    draw: Callable[[SceneTensors], Tensor] = render,
) -> Scorer:
    """Trains a scorer on drawings made as it goes.

    Args:
        device: Where to train; on CUDA in bf16 and channels-last.
        steps: Optimiser steps.
        batch: Images a step.
        generator: Of weights, scenes and blemishes; on `device`.
        log: Called with a line of progress, twenty times.
        learning_rate: At its highest, after the warm-up.
        draw: `render`, or a compiled form of it.

    Returns:
        The scorer in evaluation mode, on `device`.
    """
    device = torch.device(device)
    seed = int(torch.randint(2**62, (), device=device, generator=generator))
    # layers draw their weights from the global generator, which is put back afterwards
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        scorer = Scorer()
    scorer.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pool = to_tensors(sample_scenes(_PRESAMPLED, np.random.default_rng(seed)), device)
    optimiser, schedule = _optimiser(scorer, steps, learning_rate)
    scorer.train()
    for step in range(steps):
        scenes = take(pool, torch.randint(_PRESAMPLED, (batch,), device=device, generator=generator))
        with torch.no_grad():
            images = _blemish(draw(scenes), generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            outputs = scorer(images)
        loss = scorer_loss(outputs, scenes)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        if log is not None and (step + 1) % max(1, steps // 20) == 0:
            log(f"scorer step {step + 1}/{steps}: loss {loss.item():.4f}")
    return scorer.eval()


@torch.inference_mode()
def scorer_accuracy(scorer: Scorer, n: int, seed: int, device: torch.device | str) -> float:
    """Share of `n` freshly drawn scenes, without blemishes, whose objects are read exactly, 0 to 1."""
    scenes = sample_scenes(n, np.random.default_rng(seed))
    tensors = to_tensors(scenes, device)
    exact = 0
    for start in range(0, n, _EVALUATION_BATCH):
        index = torch.arange(start, min(start + _EVALUATION_BATCH, n), device=device)
        found = decode(scorer(render(take(tensors, index))))
        exact += sum(exact_match(one, scenes.objects(start + place)) for place, one in enumerate(found))
    return exact / n
