"""The learning-rate laws, at the iterations where an off-by-one would show."""

import pytest
from pydantic import TypeAdapter

from trainer.foundation.errors import SettingError
from trainer.foundation.settings import validate
from trainer.methods.schedule import (
    ExponentialRate,
    LinearStepsRate,
    LinearToZeroRate,
    ScheduleConfig,
    Stage,
    describe,
    learning_rate_factor,
)

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
    schedule = ScheduleConfig(stages=(Stage(until=4, learning_rate=LinearToZeroRate()),))
    assert [learning_rate_factor(schedule, t) for t in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_description_says_what_is_not_reached() -> None:
    assert describe(PAPER, 10, 2e-4) == [
        "iterations 0 to 10: learning rate 0.0002, constant",
        "iterations 400,000 to 450,000: not reached",
    ]


def test_the_conditional_gans_rate_reaches_its_floor_after_287829_updates() -> None:
    law = ExponentialRate(divisor=1.00004, floor=1e-5)
    schedule = ScheduleConfig(stages=(Stage(until=10), Stage(until=400_000, learning_rate=law)))
    assert [learning_rate_factor(schedule, t) for t in (9, 10)] == [1.0, 1.0]
    assert learning_rate_factor(schedule, 11) == pytest.approx(1 / 1.00004, rel=1e-15)
    assert learning_rate_factor(schedule, 10 + 100_000) == pytest.approx(1.00004**-100_000, rel=1e-12)
    assert learning_rate_factor(schedule, 10 + 287_828) > 1e-5
    assert [learning_rate_factor(schedule, t) for t in (10 + 287_829, 399_999, 500_000)] == [1e-5] * 3
    assert describe(schedule, 20, 0.1)[1] == (
        "iterations 10 to 20: learning rate 0.1, divided by 1.00004 in every iteration, not below 1e-05 of it"
    )


def test_a_law_without_settings_is_written_as_its_name_alone() -> None:
    tree = {
        "stages": [
            {"until": 1, "learning_rate": "constant"},
            {"until": 2, "learning_rate": "linear_to_zero"},
            {"until": 3, "learning_rate": {"name": "exponential", "divisor": 2.0, "floor": 0.0}},
        ]
    }
    made = validate(ScheduleConfig, tree, {})
    assert TypeAdapter(ScheduleConfig).dump_python(made, mode="json")["stages"] == tree["stages"]
    as_section = {"stages": [{"until": 2, "learning_rate": {"name": "linear_to_zero"}}]}
    assert validate(ScheduleConfig, as_section, {}).stages[0].learning_rate == LinearToZeroRate()


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        ("linear_to_0", "stages.0.learning_rate: is 'linear_to_0' (not set); did you mean 'linear_to_zero'?"),
        ("exponential", "stages.0.learning_rate.divisor: is missing (not set); give it a value"),
        ({"name": "exponential", "divisor": 0.9}, "stages.0.learning_rate.divisor: is 0.9 "),
        ({"name": "linear"}, "stages.0.learning_rate.name: is 'linear' (not set); choose one of 'constant', "),
    ],
)
def test_a_law_that_is_none_is_a_sentence(law: object, sentence: str) -> None:
    with pytest.raises(SettingError) as raised:
        validate(ScheduleConfig, {"stages": [{"until": 2, "learning_rate": law}]}, {})
    assert str(raised.value).startswith(sentence)


@pytest.mark.parametrize(
    ("constant", "steps", "first", "factors"),
    [  # of the last epoch at the full rate, of epochs 101, 150 and 200 of 200
        (100, 101, 1, (1.0, 100 / 101, 51 / 101, 1 / 101)),
        (99, 101, 1, (1.0, 99 / 101, 50 / 101, 0.0)),
        (100, 100, 0, (1.0, 1.0, 0.51, 0.01)),
    ],
    ids=["PyTorch until 2020", "PyTorch since then", "Lua"],
)
def test_translations_rate_falls_by_epochs_as_the_public_codes_do(
    constant: int, steps: int, first: int, factors: tuple[float, ...]
) -> None:
    epoch = 7
    law = LinearStepsRate(every=epoch, steps=steps, first=first)
    schedule = ScheduleConfig(stages=(Stage(until=constant * epoch), Stage(until=200 * epoch, learning_rate=law)))
    for number, factor in zip((constant, 101, 150, 200), factors, strict=True):
        for within in (0, epoch - 1):  # constant in an epoch
            found = learning_rate_factor(schedule, (number - 1) * epoch + within)
            assert found == pytest.approx(factor, abs=1e-12), number
    assert describe(schedule, 200 * epoch, 2e-4)[1].endswith(
        f"1 / {steps} of it less every 7 iterations, {first} at once"
    )
