"""How the training step is computed, not what: every setting here leaves the experiment as it is, up to rounding.

The plain forms are the reference. Parameters, checkpoints, hashes and initial weights do not know of these settings, so
a checkpoint moves freely between them; the bits that follow it then differ as after any other order of summation.
"""

from typing import Any, Literal

from pydantic import ConfigDict, model_validator
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", use_attribute_docstrings=True))
class SpeedConfig:
    """Exact rewrites of the training step. The defaults are those that make it faster (docs/speed.md)."""

    convolutions: Literal["plain", "merged", "transposed", "phases", "matrix", "measured"] = "measured"
    """3x3 convolutions of the residual blocks. `plain`: one after the other with the resampling beside them. `merged`: the
    discriminator's with the mean of 2x2 squares after them, as one 4x4 convolution of stride 2. `transposed`, `phases`: the
    generator's with the upsampling before them, as a transposed convolution or as four 2x2 convolutions of the small map.
    `matrix`: as matrix products. `measured`: all of these, each layer as was fastest in our timings (on a GPU: plain)."""
    low_resolution_shortcuts: bool = True
    """1x1 convolutions of the shortcuts at the lower resolution."""
    fused_spectral_norm: bool = True
    """Sigma, division and backward pass of spectral norm without copies of the weights."""
    fused_conditional_norm: bool = True
    """Conditional batch norm: gain and bias in the activations' precision, and in one go."""
    grouped_generation: bool = True
    """The generated images of all discriminator steps of an iteration in one pass of the generator, which does not change
    meanwhile; batch norm takes each step's images alone."""
    kept_kernels: bool = True
    """Without `grouped_generation`: keep the generator's enlarged kernels over the discriminator steps."""
    channels_last: bool = True
    """Channels innermost in memory (under ZeRO the weights lie in flat partitions, in their own order)."""
    fused_adam: bool = True
    """Adam in one kernel."""
    recompute_blocks: bool = False
    """Gradient checkpointing: the backward pass computes the generator's residual blocks again instead of keeping what is
    inside them. Less memory, about a third more work in the generator's step, the same numbers."""
    autotune: bool = False
    """Time all forms of `convolutions` at start, layer by layer, and take the fastest; the choice is kept in the run's folder
    (speed.json), so that a resumed run has the same kernels. It stands above `convolutions`."""
    cudnn_benchmark: bool = False
    """GPU: let cuDNN choose its algorithms by timing. Its choice, and so the last bits, may differ from start to start."""
    bf16_gradients: bool = False
    """DDP: send gradients in bfloat16, half the traffic, rounded to 8 bits before they are added up."""

    @model_validator(mode="before")
    @classmethod
    def _without_compile(cls, given: Any) -> Any:
        """Checkpoints and files from before hold `compile: none`, the default of a setting that is gone."""
        if isinstance(given, dict) and "compile" in given:
            if given["compile"] != "none":
                raise ValueError(
                    f"speed.compile: is {given['compile']!r}, but there is no such setting any more (PyTorch compiled a few "
                    "blocks and ran the others as they are); leave it out"
                )
            return {name: value for name, value in given.items() if name != "compile"}
        return given


PLAIN = SpeedConfig(
    convolutions="plain",
    low_resolution_shortcuts=False,
    fused_spectral_norm=False,
    fused_conditional_norm=False,
    grouped_generation=False,
    kept_kernels=False,
    channels_last=False,
    fused_adam=False,
)
"""Every rewrite off: the reference."""
