"""The learning-rate laws, at the iterations where an off-by-one would show."""

import pytest

from trainer.methods.schedule import ScheduleConfig, Stage, describe, learning_rate_factor

PAPER = ScheduleConfig()


@pytest.mark.parametrize(
    ("iteration", "factor"),
    [(0, 1.0), (399_999, 1.0), (400_000, 1.0), (400_001, 1 - 1 / 50_000), (425_000, 0.5), (449_999, 1 / 50_000)],
)
def test_the_papers_schedule(iteration: int, factor: float) -> None:
    assert learning_rate_factor(PAPER, iteration) == pytest.approx(factor, rel=1e-12)


def test_the_rate_stays_at_its_end() -> None:
    assert learning_rate_factor(PAPER, 450_000) == 0.0
    assert learning_rate_factor(ScheduleConfig(stages=(Stage(until=3),)), 10) == 1.0


def test_decay_from_the_first_iteration_as_on_cifar() -> None:
    schedule = ScheduleConfig(stages=(Stage(until=4, learning_rate="linear_to_zero"),))
    assert [learning_rate_factor(schedule, t) for t in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_description_says_what_is_not_reached() -> None:
    assert describe(PAPER, 10, 2e-4) == [
        "iterations 0 to 10: learning rate 0.0002, constant",
        "iterations 400,000 to 450,000: not reached",
    ]
