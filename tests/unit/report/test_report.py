"""`python -m trainer.report`: one page that needs nothing else; opened in headless Chromium where there is one."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image

from trainer import evaluate
from trainer.foundation.errors import SettingError, TrainerError
from trainer.report import __main__ as report
from trainer.report.charts import Series, line_chart, nice_ticks, scatter_chart
from trainer.report.data import differences, read_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Outline(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def page(run: Path, judge_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Two runs: one measured twice, one with other settings, an alarm, and a name that HTML must not believe."""
    words = ["--classifier", judge_file, "--samples", "60", "--splits", "2", "--pairs", "5", "--queries", "10"]
    evaluate.main([str(run), "--iteration", "2", "--measures", "fid,accuracy,ms_ssim", *words])
    other = tmp_path / "b & <i>other"
    shutil.copytree(run, other)
    evaluate.main([str(run), "--measures", "fid,accuracy,ms_ssim,neighbours,strips,resolutions", *words])
    evaluate.main([str(other), "--measures", "fid,accuracy", *words, "--samples", "61"])
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("discriminator_steps: 1", "discriminator_steps: 5"))
    with (other / "measurements.jsonl").open("a") as file:
        alarm = {"measure": "ms_ssim", "value": 0.99, "iteration": 4, "warning": "collapse: its images are alike"}
        file.write(json.dumps(alarm) + "\n")
    out = tmp_path / "out" / "report.html"
    assert report.main([str(run), str(other), "--out", str(out)]) == 0
    assert "report.html: 2 runs" in capsys.readouterr().out
    return out


def test_the_page_needs_nothing_else_and_says_all(page: Path) -> None:
    text = page.read_text()
    outline = Outline(text)
    assert not outline.open
    for tag, attributes in outline.tags:
        assert tag not in ("script", "link", "iframe", "object")
        assert "href" not in attributes
        assert str(attributes.get("src", "data:image/png;base64,")).startswith("data:image/png;base64,")
    assert not re.search(r"url\(|@import|https?://", text)
    assert "<i>other" not in text
    assert outline.text.count("tiny") > 3
    for words in (
        "Fréchet distance",
        "class accuracy",
        "Settings that differ",
        "schedule.discriminator_steps",
        "All small print",
    ):
        assert words in outline.text, words
    assert "iteration 4: collapse: its images are alike" in outline.text
    assert "not comparable: samples differ" in outline.text  # 60 and 61 samples are two measures
    assert sum(tag == "polyline" for tag, _ in outline.tags) >= 6
    pictures = [attributes["alt"] for tag, attributes in outline.tags if tag == "img"]
    kinds = sorted(str(alt).split(" of ")[0] for alt in pictures)
    assert kinds == ["interpolation", "morph", "neighbours", "samples", "samples"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian's package `chromium`)")
def test_the_page_in_chromium(page: Path, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    shot = tmp_path / "page.png"
    # No proxy, no name is resolved: whatever the page wanted to load would fail and be told on stderr.
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,3200"]
    flags += [
        f"--user-data-dir={tmp_path / 'profile'}",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
    ]
    address = f"file://{quote(str(page))}"
    done = subprocess.run(
        [CHROMIUM, *flags, f"--screenshot={shot}", address], capture_output=True, text=True, timeout=120, check=True
    )
    assert "CONSOLE" not in done.stderr
    image = Image.open(shot).convert("RGB")
    assert image.size == (1280, 3200)
    colours = {colour for _, colour in image.getcolors(1 << 22) or []}
    assert {(0, 114, 178), (213, 94, 0)} <= colours  # the two runs' curves are there
    assert len(colours) > 100
    dumped = subprocess.run(
        [CHROMIUM, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120, check=True
    )
    assert Outline(dumped.stdout).text.split() == Outline(page.read_text()).text.split()


def test_charts() -> None:
    assert nice_ticks(0.0, 10.0) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    ticks = nice_ticks(13.0, 97.0)
    assert ticks[0] <= 13.0
    assert ticks[-1] >= 97.0
    assert len(nice_ticks(5.0, 5.0)) >= 2
    many = [(float(n), float(n * n)) for n in range(5000)]
    chart = line_chart("a < b", [Series("run", "#000000", many)], {"real": 2.0})
    assert 'aria-label="a &lt; b"' in chart
    points = re.findall(r'points="([^"]+)"', chart)[0].split()
    assert len(points) < 450
    left, low = map(float, points[0].split(","))
    right, high = map(float, points[-1].split(","))
    assert left < right
    assert low > high  # SVG counts downwards
    empty = scatter_chart("none", [], "x", "y", None)
    assert empty.startswith("<svg")
    assert "circle" not in empty


def test_what_cannot_be_compared_is_named(run: Path, tmp_path: Path) -> None:
    one = {
        "measure": "frechet_distance",
        "value": 1.0,
        "samples": 100,
        "features_digest": "a",
        "seconds": {},
        "iteration": 1,
    }
    other = {
        "value": 2.0,
        "iteration": 9,
        "seconds": {"x": 1},
        "hardware": {"device": "cpu"},
    }  # older records have none
    assert differences([one, one | other]) == []
    assert differences([one, one | {"samples": 200, "features_digest": "b"}]) == ["features_digest", "samples"]
    (run / "measurements.jsonl").write_text("".join(json.dumps(one | more) + "\n" for more in (
        {}, {"iteration": 2, "value": 0.5}, {"iteration": 3, "samples": 7}, {"iteration": 4, "value": 0.25},
    )))  # fmt: skip
    assert read_run(str(run)).history("frechet_distance") == [(1.0, 1.0), (2.0, 0.5), (4.0, 0.25)]
    with pytest.raises(
        TrainerError, match=r"RUN: .*nothing has neither measurements.jsonl nor metrics.jsonl; give a run's"
    ):
        report.main([str(tmp_path / "nothing")])
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"--out: cannot write .*give another path"):
        report.main([str(run), "--out", str(tmp_path / "file" / "report.html")])
