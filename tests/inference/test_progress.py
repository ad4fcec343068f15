"""Progress without a terminal, and times as text."""

import pytest

from flair_jax.inference import progress
from flair_jax.inference.progress import TileProgress, duration


def test_a_line_a_minute_without_a_terminal(monkeypatch, capsys):
    now = 0.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with TileProgress(1000, 100) as tiles:
        for _ in range(300):
            now += 0.5
            tiles.update(1)
    assert capsys.readouterr().out.splitlines() == [
        "  220 of 1,000 tiles (22%), 2 tiles/s, 6 min 30 s left",
        "  340 of 1,000 tiles (34%), 2 tiles/s, 5 min 30 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 0 s"), (3599.6, "1 h 0 min"), (90_061, "1 d 1 h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
