"""Do two generators hide the image in noise that nobody sees? (Chu et al. 2017, "CycleGAN, a Master of Steganography".)

An image is translated, gets noise of a few grey levels, and is translated back. Where the error of the way there and back grows
much with noise that the eye does not see, what comes back was hidden and not shown.
"""

from typing import ClassVar

import torch

from trainer.foundation import keys
from trainer.foundation.errors import SettingError
from trainer.methods.sampling import ThereAndBack
from trainer.metrics.protocol import Measure, Needs, Setting
from trainer.metrics.records import Measurement
from trainer.metrics.samples import in_order
from trainer.trained.sampling import CHUNK, chunks_of, device_of, evaluating

LEVELS = (0, 2, 4, 8, 16)
"""Standard deviations of the noise, in grey levels of 255."""


class RoundTrip(Measure):
    """L1 (0..1) between images and what comes back, for each deviation of the noise. Of the first --samples conditions."""

    name, meaning = "round_trip", "error of the way there and back, with and without invisible noise between"
    needs = Needs()
    titles: ClassVar[dict[str, str]] = {"round_trip_l1": "L1 of the way there and back"}
    outcomes = frozenset({"by_noise"})
    in_all = False
    usual_samples = 1_000

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        if not isinstance(setting.samples.sampler, ThereAndBack):
            raise SettingError("--measures: round_trip needs a generator that goes there and back; leave it out")
        self._sampler = setting.samples.sampler
        self._means: list[float] = []

    def work(self) -> None:
        """Chunks of 50 are dealt to the processes."""
        setting = self.setting
        count, device = setting.plan.samples, device_of(setting.samples.sampler)

        def errors(chunk: int) -> torch.Tensor:
            images = setting.samples.conditions(chunk)
            noise = torch.randn(images.shape, generator=keys.generator(setting.plan.seed, "round trip", chunk))
            with torch.no_grad(), evaluating(setting.samples.sampler):
                columns = []
                for level in LEVELS:
                    back = self._sampler.there_and_back(images.to(device), (level / 127.5 * noise).to(device)).cpu()
                    columns.append((back - images).abs().flatten(1).mean(1).double() / 2)
            return torch.stack(columns, 1)

        found = list(in_order(setting.launch, chunks_of(count), (CHUNK, len(LEVELS)), errors))
        if setting.launch.is_main:
            self._means = torch.cat(found)[:count].mean(0).tolist()

    def result(self) -> list[Measurement]:
        details = {
            "samples": self.setting.plan.samples,
            "by_noise": dict(zip(map(str, LEVELS), self._means, strict=True)),
        }
        return [Measurement("round_trip_l1", self._means[0], details, better="lower")]

    def table(self, iteration: int) -> str:
        lines = [f"{self.setting.plan.samples:,} images at iteration {iteration:,}: L1 of the way there and back"]
        pairs = zip(LEVELS, self._means, strict=True)
        return "\n".join([*lines, *(f"  noise of {level:2} grey levels{mean:10.4f}" for level, mean in pairs)])
