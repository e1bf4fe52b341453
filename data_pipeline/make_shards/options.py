"""Values of the command line's options. Each function raises ValueError or ArgumentTypeError for a wrong text."""

import argparse


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def size(text: str) -> int | tuple[int, int]:
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isascii() and number.isdigit() and int(number) >= 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} is neither a number of pixels nor WIDTHxHEIGHT, as in 128 or 160x96")
    sides = [int(number) for number in numbers]
    return sides[0] if len(set(sides)) == 1 else (sides[0], sides[1])


def part(text: str) -> tuple[int, int]:
    first, slash, last = text.partition("/")
    if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text} is not I/N with 1 <= I <= N, as in 3/16")
    return int(first), int(last)


def names_of(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value
