"""Growth as a function of the iteration: against the official loop, which has a state, and against its published figures."""

import math

import pytest

from trainer.methods.growth import PRESETS, GrowthConfig, GrowthTable
from trainer.methods.schedule import BatchConfig
from trainer.models.growing import Stage

OFFICIAL = {  # preset, replicas, resolution, first, images of a phase, of the run: some (iteration, images), and the end
    ("stylegan_8", 8, 1024, 8, 600_000, 25_000_000): ([(2_344, 600_064), (199_216, 8_400_000)], 717_968),
    ("pggan_8", 8, 1024, 4, 600_000, 12_000_000): (
        [(1_172, 600_064), (3_516, 1_200_128), (202_728, 9_600_000)],
        277_728,
    ),
    ("pggan_paper", 1, 1024, 4, 800_000, 19_000_000): ([(50_004, 800_064), (1_197_612, 12_800_004)], 3_264_280),
    ("pggan_1", 1, 1024, 4, 600_000, 12_000_000): ([], 1_354_672),
    ("stylegan_1", 1, 256, 8, 600_000, 25_000_000): ([(220_304, 6_000_000)], 2_595_304),
}


def table(resolution: int = 32, replicas: int = 1, real: int = 16, **settings: object) -> GrowthTable:
    config = GrowthConfig(**settings)  # type: ignore[arg-type]
    return config.table(resolution, BatchConfig(replicas=replicas, real_per_replica=real))


@pytest.mark.parametrize("case", OFFICIAL, ids=lambda case: case[0])
def test_the_segments_are_those_of_the_official_loop(case: tuple[str, int, int, int, int, int]) -> None:
    preset, replicas, resolution, first, phase, whole = case
    found = table(resolution, replicas, preset=preset, first_resolution=first, stable_images=phase, fade_images=phase)
    # The loop: an image counter; levels of detail left, looked at once in four iterations.
    doublings, images, iteration, before = int(math.log2(resolution / first)), 0, 0, None
    expected = []
    while images < whole:
        done, within = divmod(images, 2 * phase)
        left = max(0, (doublings - done) * phase - max(within - phase, 0))  # times the phase
        whole_levels = left // phase
        side = resolution >> whole_levels
        changed = (now := (whole_levels, -(-left // phase))) != before
        if changed:
            expected.append((iteration, images, side))
            before = now
        if changed or iteration % 404 == 0:
            at = found.at(iteration)
            assert at.images == images
            assert at.stage.resolution == side
            assert at.stage.fade == pytest.approx(1 - (left / phase - whole_levels), abs=1e-12)
            assert at.forgets == (changed and iteration > 0)
        iteration, images = iteration + 4, images + 4 * PRESETS[preset].batches[side]
        if len(expected) == 2 * doublings + 1:  # nothing changes any more
            break
    assert [(s.iteration, s.images, s.resolution) for s in found.segments] == expected
    some, end = OFFICIAL[case]
    assert set(some) <= {(s.iteration, s.images) for s in found.segments}
    assert found.iterations(whole) == end


def test_within_a_block_the_fade_is_held_and_images_are_counted() -> None:
    grown = table(8, 2, 3, stable_images=30, fade_images=100, repeats=2)
    assert [(s.iteration, s.images) for s in grown.segments] == [(0, 0), (6, 36), (22, 132)]
    assert [grown.at(t).stage for t in (5, 6, 7, 8)] == [Stage(4), *[Stage(8, 0.06)] * 2, Stage(8, 0.18)]
    assert [grown.at(t).images for t in (5, 6, 7, 8)] == [30, 36, 42, 48]
    assert [t for t in range(30) if grown.at(t).forgets] == [6, 22]
    assert [(s.begin, s.end) for s in grown.describe(20)] == [(0, 6), (6, 20)]


def test_a_fade_begins_behind_its_boundary_and_ends_at_it() -> None:
    """Exactly at the boundary nothing has faded yet, so the official code waits for the next block."""
    grown = table(8, 1, 4, stable_images=16, fade_images=16, repeats=1)
    assert [(s.iteration, s.images) for s in grown.segments] == [(0, 0), (5, 20), (8, 32)]


def test_rates_and_batches_are_those_of_the_newest_level() -> None:
    grown = table(
        16, 2, 8, stable_images=64, fade_images=64, batches={8: 4}, rates={8: 2.0, 16: 3.0}, resets=False, repeats=1
    )
    assert [(s.batch, s.rate) for s in grown.segments] == [(8, 1.0), (4, 2.0), (4, 2.0), (8, 3.0), (8, 3.0)]
    assert not any(grown.at(t).forgets for t in range(100))
    ramp = table(4, ramp_images=64, repeats=1)
    assert [ramp.at(t).rate for t in (0, 2, 4)] == pytest.approx([math.exp(-5), math.exp(-1.25), 1.0])


@pytest.mark.parametrize(
    ("resolution", "settings", "sentence"),
    [
        (48, {}, r"^model\.resolution: is 48, .* give a power of two"),
        (32, {"first_resolution": 64}, r"^objective\.growth\.first_resolution: is 64; give a power of two from 4"),
        (32, {"batches": {64: 4}}, r"^objective\.growth\.batches: has a value for 64 px"),
        (
            32,
            {"preset": "pggan_1", "replicas": 3},
            r"^batch\.replicas: is 3, which does not divide the 128 images at 4 px",
        ),
    ],
)
def test_an_impossible_growth_is_a_sentence(resolution: int, settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        table(resolution, **settings)  # type: ignore[arg-type]


def test_a_batch_that_groups_do_not_divide_names_the_level() -> None:
    table(32, batches={16: 3}).check_groups(4, "objective.discriminator.group")
    with pytest.raises(
        ValueError, match=r"^objective\.growth\.batches: a replica has 6 images at 16 px, .*groups of 4"
    ):
        table(32, batches={16: 6}).check_groups(4, "objective.discriminator.group")
    with pytest.raises(ValueError, match=r"^batch\.real_per_replica: a replica has 10 images at 4 px"):
        table(32, real=10).check_groups(4, "objective.discriminator.group")
    table(32, real=10).check_groups(None, "objective.discriminator.group")
