"""The report as one HTML page that needs nothing else: pictures inside, curves as SVG, no script, no address."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from trainer.checkpoint.format import code_version
from trainer.metrics.measures import column, note, titles
from trainer.report.before_after import stage_section
from trainer.report.charts import Series, colour_of, line_chart, scatter_chart
from trainer.report.data import Record, RunData, differences, differing_settings

STYLE = """
:root { color-scheme: light dark; --line: #8883; --quiet: #667; --card: #8881; }
@media (prefers-color-scheme: dark) { :root { --quiet: #aab; } body { background: #14161a; color: #e6e6e6; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: 1rem; margin: .8rem 0 .3rem; } p { margin: .4rem 0; }
.quiet, small { color: var(--quiet); } .bad { color: #c0392b; font-weight: 600; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; } .wide { overflow-x: auto; }
th { white-space: nowrap; }
th, td { text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr > th:first-child { white-space: normal; } td.number { text-align: right; white-space: nowrap; } td.best { font-weight: 700; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1rem; }
figure { margin: 0; padding: .6rem; background: var(--card); border-radius: .5rem; }
figcaption { font-weight: 600; font-size: .9rem; margin-bottom: .2rem; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 1rem; align-items: start; }
img { max-width: 100%; height: auto; display: block; background: #fff; image-rendering: auto; }
svg { width: 100%; height: auto; display: block; } svg text { font-size: 11px; fill: currentColor; }
svg .grid { stroke: var(--line); } svg .axis { stroke: currentColor; }
svg .reference { stroke: currentColor; stroke-dasharray: 4 3; opacity: .7; } svg text.reference { stroke: none; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: .2em; margin-right: .35em; }
.bar { display: inline-block; height: .7em; border-radius: .15em; margin-right: .4em; vertical-align: baseline; }
details { margin: .4rem 0; } summary { cursor: pointer; } pre { overflow-x: auto; font-size: .8rem; }
"""
PICTURES = {
    "samples": "Samples, a row per class, fixed latents",
    "interpolation": "From one latent vector to another, within a class",
    "morph": "From one class to the next, at one latent vector",
    "neighbours": "Generated image; its nearest training images in pixels; in features",
}
TRAINING = (
    "loss/discriminator", "loss/generator", "score/real", "score/fake", "health/score_gap",
    "health/gradient_norm/generator", "health/gradient_norm/discriminator", "health/singular_value/generator/largest",
    "health/singular_value/discriminator/largest", "health/ms_ssim/highest", "quality/class_accuracy",
    "learning_rate/generator", "speed/images_per_second",
)  # fmt: skip


def render(runs: Sequence[RunData]) -> str:
    """The whole page."""
    names = ", ".join(run.name for run in runs)
    sections = [
        f"<h1>{escape(names)}</h1>",
        f'<p class="quiet">Menagerie {escape(code_version())}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. '
        "Bold: the better value, where values can be compared. A value means little without its small print.</p>",
        _legend(runs),
        _warnings(runs),
        stage_section(runs),
        _comparison(runs),
        _measure_curves(runs),
        _per_class(runs),
        _pictures(runs),
        _training_curves(runs),
        _settings(runs),
        _small_print(runs),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(names)}</title>'
    body = "\n".join(section for section in sections if section)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _legend(runs: Sequence[RunData]) -> str:
    keys = [
        f'<span class="key" style="background:{colour_of(n)}"></span>{escape(run.name)}' for n, run in enumerate(runs)
    ]
    return f"<p>{' &nbsp; '.join(keys)}</p>"


def _warnings(runs: Sequence[RunData]) -> str:
    lines = {
        f'<p class="bad">{escape(run.name)}, iteration {record["iteration"]:,}: {escape(str(record["warning"]))}</p>'
        for run in runs
        for record in run.newest().values()
        if record.get("warning")
    }
    return "\n".join(sorted(lines))


def value_text(record: Record | None) -> str:
    """A value as the table shows it."""
    if record is None or record.get("value") is None:
        return "-"
    value = float(record["value"])
    text = f"{value:.1%}" if record.get("unit") == "%" else f"{value:.4g}"
    return f"{text} ± {record['deviation']:.2g}" if record.get("deviation") is not None else text


def _comparison(runs: Sequence[RunData]) -> str:
    """A row per measure, a column per run, and what must be known beside them."""
    newest = [run.newest() for run in runs]
    known = titles()
    measures = [name for name in known if any(name in found for found in newest)]
    measures += sorted({name for found in newest for name in found} - set(known))
    if not measures:
        return "<p>Nothing was measured yet: <code>python -m trainer.evaluate RUN</code>.</p>"
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    rows = []
    for measure in measures:
        records = [found.get(measure) for found in newest]
        present = [record for record in records if record is not None]
        differ = differences(present)
        best = _best(present) if not differ and len(present) > 1 else None
        cells = []
        for record in records:
            chosen = best is not None and record is not None and record.get("value") == best
            at = f"<br><small>at {record['iteration']:,}</small>" if record else ""
            cells.append(f'<td class="number{" best" if chosen else ""}">{escape(value_text(record))}{at}</td>')
        small = _note(measure, present[-1])
        if differ:
            small += f' <span class="bad">not comparable: {escape(", ".join(differ))} differ</span>'
        title = escape(known.get(measure, measure))
        rows.append(f"<tr><th>{title}</th>{''.join(cells)}<td><small>{small}</small></td></tr>")
    table = f"<table><tr><th>measure</th>{head}<th>small print</th></tr>{''.join(rows)}</table>"
    return f'<h2>Measures</h2><div class="wide">{table}</div>'


def _best(records: Sequence[Record]) -> float | None:
    values = [float(record["value"]) for record in records if record.get("value") is not None]
    better = records[0].get("better")
    return None if not values or not better else max(values) if better == "higher" else min(values)


def _note(measure: str, record: Record) -> str:
    """The short form of the small print."""
    parts = []
    for name, words in (
        ("samples", "{:,} samples"), ("samples_per_class", "{:,} samples per class"), ("pairs_per_class", "{} pairs per class"),
        ("splits", "{} splits"), ("real_samples", "{:,} real"), ("windows", "windows {}"), ("seed", "seed {}"),
    ):  # fmt: skip
        if record.get(name) is not None:
            parts.append(words.format(record[name]))
    for name in ("features", "classifier"):
        if record.get(name):
            digest = str(record.get(f"{name}_digest", ""))[:8]
            parts.append(f"{record[name]} ({digest})" if digest else str(record[name]))
    if isinstance(record.get("reference"), dict):
        reference = record["reference"]
        count = f" of {reference['samples']:,} images" if "samples" in reference else ""
        parts.append(f"real data {str(reference.get('data_fingerprint', ''))[:8]}{count}")
    if record.get("real_images") is not None:
        parts.append(f"real images {record['real_images']:.3g}")
    if record.get("expected_without_copying") is not None:
        parts.append("about 1% if nothing is copied")
    if special := note(measure, record):
        parts.append(special)
    parts.append("moving average" if record.get("moving_average") else "plain weights")
    parts.append(f"batch norm: {record.get('batch_norm', '?')}")
    return escape("; ".join(parts))


def _figure(title: str, chart: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{chart}</figure>"


def _measure_curves(runs: Sequence[RunData]) -> str:
    figures = []
    for measure, title in titles().items():
        series = [Series(run.name, colour_of(n), run.history(measure)) for n, run in enumerate(runs)]
        if any(len(entry.points) > 1 for entry in series):
            real = [
                record["real_images"]
                for run in runs
                if (record := run.newest().get(measure)) and record.get("real_images")
            ]
            figures.append(_figure(title, line_chart(title, series, {"real images": real[0]} if real else None)))
    return f'<h2>Measures over iterations</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _per_class(runs: Sequence[RunData]) -> str:
    """Every measurement's values per class, and accuracy against MS-SSIM."""
    newest = [run.newest() for run in runs]
    names = [name for name in titles() if any(_values(found, name) for found in newest)]
    classes = list(dict.fromkeys(key for name in names for found in newest for key in _values(found, name)))
    if not classes:
        return ""
    scatter = _accuracy_against_ms_ssim(runs, classes)
    columns = [entry for name in names for entry in _columns(name, runs)]
    head = "".join(f"<th>{escape(title)}<br><small>{escape(below)}</small></th>" for title, below, _ in columns)
    rows = "".join(
        f"<tr><th>{escape(key)}</th>{''.join(cells.get(key, '<td>-</td>') for _, _, cells in columns)}</tr>"
        for key in classes
    )
    table = f'<div class="wide"><table><tr><th>class</th>{head}</tr>{rows}</table></div>'
    folded = f"<details><summary>{len(classes)} classes</summary>{table}</details>" if len(classes) > 40 else table
    return "\n".join(["<h2>Classes</h2>", *scatter, folded])


def _values(found: Mapping[str, Record], name: str, field: str = "per_class") -> dict[str, float]:
    """The values per class of the measurement `name`; classes without one are left out."""
    values = found.get(name, {}).get(field) or {}
    return {key: value for key, value in values.items() if value is not None}


def _columns(name: str, runs: Sequence[RunData]) -> Iterator[tuple[str, str, dict[str, str]]]:
    """A measurement's columns in the table of classes: head, what is below it, and the cells by class.

    Shares are bars in percent; values that are known of real images too are bars, with a column of those; others are numbers.
    """
    title = column(name) or name
    newest = [run.newest() for run in runs]
    real: dict[str, float] = next(filter(None, (_values(found, name, "real_per_class") for found in newest)), {})
    percent = any(found.get(name, {}).get("unit") == "%" for found in newest)
    for number, (run, found) in enumerate(zip(runs, newest, strict=True)):
        values, colour = _values(found, name), colour_of(number)
        if percent or real:
            yield title, run.name, {key: _bar(value, colour, percent) for key, value in values.items()}
        else:
            yield title, run.name, {key: f'<td class="number">{value:.4g}</td>' for key, value in values.items()}
    if real:
        yield title, "real images", {key: _bar(value, "#888", percent) for key, value in real.items()}


def _accuracy_against_ms_ssim(runs: Sequence[RunData], classes: Sequence[str]) -> list[str]:
    """The chart, where both were measured."""
    points = []
    for number, run in enumerate(runs):
        accuracy, alike = (_values(run.newest(), name) for name in ("class_accuracy", "ms_ssim"))
        both = [key for key in classes if key in accuracy and key in alike]
        labels = [f"{run.name}: {key}, MS-SSIM {alike[key]:.2f}, accuracy {accuracy[key]:.1%}" for key in both]
        points.append(Series(run.name, colour_of(number), [(alike[key], accuracy[key]) for key in both], labels))
    if not any(series.points for series in points):
        return []
    threshold = next((r.newest()["ms_ssim"].get("threshold") for r in runs if "ms_ssim" in r.newest()), None)
    words = ("accuracy against MS-SSIM", points, "MS-SSIM (higher: less varied)", "class accuracy", threshold)
    title = "Accuracy against MS-SSIM; dashed: the least varied real class"
    return [f'<div class="charts">{_figure(title, scatter_chart(*words))}</div>']


def _bar(value: float, colour: str, percent: bool) -> str:
    width = 60 * min(max(value, 0.0), 1.0)
    text = f"{value:.1%}" if percent else f"{value:.2f}"
    return f'<td><span class="bar" style="width:{width:.0f}px;background:{colour}"></span>{text}</td>'


def _pictures(runs: Sequence[RunData]) -> str:
    kinds = [kind for kind in PICTURES if any(kind in run.pictures for run in runs)]
    kinds += sorted({kind for run in runs for kind in run.pictures} - set(PICTURES))
    parts = []
    for kind in kinds:
        shown = []
        for run in runs:
            if kind in run.pictures:
                iteration, uri = run.pictures[kind]
                caption = f"{run.name}, iteration {iteration:,}"
                shown.append(_figure(caption, f'<img src="{uri}" alt="{escape(f"{kind} of {caption}")}">'))
        parts.append(f'<h2>{escape(PICTURES.get(kind, kind))}</h2><div class="pictures">{"".join(shown)}</div>')
    return "\n".join(parts)


def _training_curves(runs: Sequence[RunData]) -> str:
    known = {name for run in runs for name in run.curves}
    figures = [
        _figure(
            name, line_chart(name, [Series(r.name, colour_of(n), r.curves.get(name, [])) for n, r in enumerate(runs)])
        )
        for name in TRAINING
        if name in known
    ]
    return f'<h2>Training</h2><div class="charts">{"".join(figures)}</div>' if figures else ""


def _settings(runs: Sequence[RunData]) -> str:
    differing = differing_settings(runs) if len(runs) > 1 else {}
    parts = []
    if differing:
        rows = [(name, *(_shown(value) for value in values)) for name, values in differing.items()]
        parts.append(f"<h2>Settings that differ</h2>{_table(('setting', *(run.name for run in runs)), rows)}")
    for run in runs:
        rows = [(name, _shown(value)) for name, value in run.settings.items()]
        if rows:
            inner = _table(("setting", "value"), rows)
            parts.append(f"<details><summary>All settings of {escape(run.name)}</summary>{inner}</details>")
    return "\n".join(parts)


def _shown(value: object) -> str:
    return "" if value is None else str(value)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    rest = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{first}</tr>{rest}</table></div>'


def _small_print(runs: Sequence[RunData]) -> str:
    parts = ["<h2>All small print</h2>"]
    for run in runs:
        for measure, record in sorted(run.newest().items()):
            text = escape(json.dumps(record, indent=1, ensure_ascii=False))
            parts.append(
                f"<details><summary>{escape(run.name)}: {escape(measure)}</summary><pre>{text}</pre></details>"
            )
    return "\n".join(parts) if len(parts) > 1 else ""
