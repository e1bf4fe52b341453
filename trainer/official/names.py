"""Names and layouts of the official Chainer code (pfnet-research/sngan_projection), against those of our modules.

A Chainer array is named by the path of links to it ("block2/c1/W"). All layouts are PyTorch's own: convolutions
[out, in, h, w], linear layers [out, in], embeddings [classes, features]; only `u` is a row there, [1, out].
"""

from collections.abc import Iterator

from torch import nn

from trainer.foundation.errors import SettingError
from trainer.models.conditioning import AuxiliaryClassifier, Concat, ConditionalBatchNorm2d, Projection
from trainer.models.layers import BatchNorm2d, SpectralLayer
from trainer.models.resnet import ResNetDiscriminator, ResNetGenerator

COUNTERS = "N"
"""Chainer's batch norm also stores N, a count that only its fine-tuning mode uses. It is read and dropped."""
OfficialNetwork = ResNetGenerator | ResNetDiscriminator
"""The networks that the official code has."""


def official_network(network: nn.Module, section: str) -> OfficialNetwork:
    """The network itself if the official code has its kind. Else raises SettingError for `section`."""
    if not isinstance(network, OfficialNetwork):
        raise SettingError(f"{section}.name: the official code has residual networks alone; set it to resnet")
    return network


def official_names(module: OfficialNetwork) -> dict[str, str]:
    """Official array name -> our state-dict name, for every tensor of the module.

    Raises ValueError for a network that the official code cannot express.
    """
    pairs = _generator(module) if isinstance(module, ResNetGenerator) else _discriminator(module)
    names = dict(pairs)
    left = sorted(module.state_dict().keys() - set(names.values()))
    if left:
        raise ValueError(f"{left[0]}: has no counterpart in the official code")
    return names


def official_counters(module: OfficialNetwork) -> set[str]:
    """Names of the counts that official snapshots hold beside the arrays of `official_names`."""
    return {f"{n.removesuffix('avg_mean')}{COUNTERS}" for n in official_names(module) if n.endswith("avg_mean")}


def _generator(module: ResNetGenerator) -> Iterator[tuple[str, str]]:
    yield from _affine("l1", "linear")
    for index, block in enumerate(module.blocks):
        theirs, ours = f"block{index + 2}", f"blocks.{index}"
        yield from _affine(f"{theirs}/c1", f"{ours}.conv1")
        yield from _affine(f"{theirs}/c2", f"{ours}.conv2")
        yield from _affine(f"{theirs}/c_sc", f"{ours}.shortcut")
        yield from _norm(f"{theirs}/b1", f"{ours}.norm1", block.get_submodule("norm1"))
        yield from _norm(f"{theirs}/b2", f"{ours}.norm2", block.get_submodule("norm2"))
    last = len(module.blocks) + 2
    if isinstance(module.norm, BatchNorm2d):
        yield from _norm(f"b{last}", "norm", module.norm)
    # The CIFAR file calls its last convolution c5, the others l6 and l7.
    yield from _affine(f"c{last}" if last == 5 else f"l{last}", "conv")


def _discriminator(module: ResNetDiscriminator) -> Iterator[tuple[str, str]]:
    for index, block in enumerate(module.blocks):
        for theirs, ours in (("c1", "conv1"), ("c2", "conv2"), ("c_sc", "shortcut")):
            if getattr(block, ours) is not None:
                yield from _spectral(f"block{index + 1}/{theirs}", f"blocks.{index}.{ours}", getattr(block, ours))
    yield from _spectral(f"l{len(module.blocks) + 1}", "linear", module.linear)
    if isinstance(module.conditioning, Projection | Concat):
        yield from _spectral("l_y", "conditioning.embedding", module.conditioning.embedding)
    elif isinstance(module.conditioning, AuxiliaryClassifier):
        raise ValueError("conditioning.classifier: has no counterpart in the official code")


def _affine(theirs: str, ours: str) -> Iterator[tuple[str, str]]:
    yield f"{theirs}/W", f"{ours}.weight"
    yield f"{theirs}/b", f"{ours}.bias"


def _spectral(theirs: str, ours: str, layer: SpectralLayer) -> Iterator[tuple[str, str]]:
    yield f"{theirs}/W", f"{ours}.weight"
    yield f"{theirs}/u", f"{ours}.u"
    if getattr(layer, "bias", None) is not None:
        yield f"{theirs}/b", f"{ours}.bias"


def _norm(theirs: str, ours: str, layer: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(layer, ConditionalBatchNorm2d):
        yield f"{theirs}/gammas/W", f"{ours}.gain"
        yield f"{theirs}/betas/W", f"{ours}.bias"
        ours = f"{ours}.norm"
    else:
        yield f"{theirs}/gamma", f"{ours}.weight"
        yield f"{theirs}/beta", f"{ours}.bias"
    yield f"{theirs}/avg_mean", f"{ours}.running_mean"
    yield f"{theirs}/avg_var", f"{ours}.running_var"
