"""Geometry of the line charts: axes, ticks, lines and labels; the template renders them."""

import dataclasses
import math
from collections.abc import Sequence

from flair_jax.report.collect import RunFacts, is_number

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 74, 12, 34
STYLES = 6  # colours, and as many patterns of dashes, that the style sheet has for lines
_MOST_POINTS = 300
_MOST_MARKS = 60
_LABEL_HEIGHT = 13

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Series:
    """One line: the label at its end, its points, the index of its style; faint lines are thin."""

    name: str
    points: list[Point]
    style: int
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Line:
    """A series on the canvas: SVG path, marks (x, y, text), style, and position of its label."""

    name: str
    path: str
    marks: list[tuple[float, float, str]]
    colour: int
    dashes: int
    faint: bool
    label_x: float
    label_y: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart on a canvas of `WIDTH` x `HEIGHT`; ticks are (position, text)."""

    title: str
    description: str
    x_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]


def curves(runs: Sequence[RunFacts]) -> list[Chart]:
    """The learning curves: of one run in three charts, of several in one chart a quantity.

    "averaged" are lines that were scored with the exponential moving average of the weights.
    """
    x_label = "epoch" if any(run.epochs for run in runs) else "step"
    if len(runs) == 1:
        run = runs[0]
        charts = [
            ("Loss", [
                Series("one step", _steps(run), 0, faint=True),
                Series("training", _epochs(run, "train_loss"), 0),
                Series("validation", _epochs(run, "val_loss"), 1),
                Series("averaged", _epochs(run, "val_loss_ema"), 2),
            ]),
            ("mIoU, validation split", [
                Series("validation", _epochs(run, "val_miou"), 1),
                Series("averaged", _epochs(run, "val_miou_ema"), 2),
            ]),
            ("Learning rate", [Series("rate", _epochs(run, "learning_rate"), 0)]),
        ]  # fmt: skip
    else:
        charts = [
            (title, [Series(str(i), _epochs(run, key), i - 1) for i, run in enumerate(runs, 1)])
            for title, key in (
                ("Loss, training split", "train_loss"),
                ("Loss, validation split", "val_loss"),
                ("mIoU, validation split", "val_miou"),
            )
        ]
    made = [chart(title, [s for s in series if s.points], x_label) for title, series in charts]
    return [c for c in made if c is not None]


def _epochs(run: RunFacts, key: str) -> list[Point]:
    return [(e["epoch"], e[key]) for e in run.epochs if is_number(e.get(key))]


def _steps(run: RunFacts) -> list[Point]:
    """The loss by step, along the epochs if their length is known, thinned out."""
    per_epoch = run.epochs[-1]["step"] / run.epochs[-1]["epoch"] if run.epochs else 1
    points = [(s["step"] / per_epoch, s["loss"]) for s in run.steps if is_number(s["loss"])]
    return points[:: math.ceil(len(points) / _MOST_POINTS)] if points else []


def chart(title: str, series: Sequence[Series], x_label: str) -> Chart | None:
    """Lays out series on a canvas; None if there is nothing to draw."""
    if not series:
        return None
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    low_x, high_x = min(0.0, *xs), max(*xs, 1.0)
    y_ticks = ticks(min(0.0, *ys), max(ys))
    low_y, high_y = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def to_x(x: float) -> float:
        return LEFT + (x - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)

    def to_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)

    x_ticks = [tick for tick in ticks(low_x, high_x) if tick <= high_x and tick == round(tick)]
    label_ys = spread([to_y(s.points[-1][1]) for s in series], _LABEL_HEIGHT)
    lines = []
    for s, label_y in zip(series, label_ys, strict=True):
        positioned = [(round(to_x(x), 1), round(to_y(y), 1)) for x, y in s.points]
        marked = zip(positioned, s.points, strict=True) if len(positioned) <= _MOST_MARKS else ()
        lines.append(
            Line(
                s.name,
                "M" + "L".join(f"{x} {y}" for x, y in positioned),
                [(*at, f"{s.name}, {x_label} {x:g}: {number(y)}") for at, (x, y) in marked],
                s.style % STYLES,
                # Colours repeat after a round, then with other dashes.
                (s.style + s.style // STYLES) % STYLES,
                s.faint,
                round(positioned[-1][0] + 8, 1),
                round(label_y, 1),
            )
        )
    return Chart(
        title,
        f"{title} by {x_label}. " + " ".join(_in_words(s, x_label) for s in series),
        x_label,
        [(round(to_x(t), 1), f"{t:,.0f}") for t in x_ticks],
        [(round(to_y(t), 1), number(t)) for t in y_ticks],
        lines,
    )


def _in_words(series: Series, x_label: str) -> str:
    (x0, y0), (x1, y1) = series.points[0], series.points[-1]
    values = [y for _, y in series.points]
    return (
        f"{series.name}: {number(y0)} at {x_label} {x0:g}, {number(y1)} at {x_label} {x1:g}, "
        f"between {number(min(values))} and {number(max(values))}."
    )


def number(value: float) -> str:
    """Three digits at most, without a tail of zeros."""
    return f"{value:.3g}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from below `low` to above `high`."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def spread(positions: Sequence[float], apart: float) -> list[float]:
    """The positions moved as little as keeps them `apart`, in the same order, none below the rest.

    Labels at the ends of lines that lie close to each other would otherwise cover one another.
    """
    order = sorted(range(len(positions)), key=positions.__getitem__)
    groups: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        groups.append([i])
        centres.append(positions[i])
        # Two groups that would touch become one around their common mean.
        while len(groups) > 1:
            needed = (len(groups[-1]) + len(groups[-2])) / 2 * apart
            if centres[-1] - centres[-2] >= needed:
                break
            merged = groups[-2] + groups[-1]
            groups[-2:] = [merged]
            centres[-2:] = [sum(positions[j] for j in merged) / len(merged)]
    positioned = [0.0] * len(positions)
    for group, centre in zip(groups, centres, strict=True):
        for rank, i in enumerate(group):
            positioned[i] = centre + (rank - (len(group) - 1) / 2) * apart
    return positioned
