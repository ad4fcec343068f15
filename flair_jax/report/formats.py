"""How the page writes numbers: scores, shares, intervals, durations, counts."""

import re
from collections.abc import Sequence

from flair_jax.runtime.console import counted

# Lines that earlier versions logged at the start of a training.
_DEVICES = re.compile(
    r"(\d+) x (.+?) \((\w+)\), (\d+) host\(s\), global batch (\d+), (\d+) steps an epoch"
)
_CROPS = re.compile(r"(?<!in) crops of (\d+)$")
_PATCHES = re.compile(r"(\d+ train), (\d+ val patches of \d+ x \d+)(?! pixels)")


def fixed(value: float | None, digits: int = 4) -> str:
    """A number with so many digits, "–" where there is none."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def percent(share: float | None, digits: int = 1) -> str:
    """A share in per cent, "–" where there is none."""
    return "–" if share is None or share != share else f"{100 * share:.{digits}f}%"


def interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    """Both ends of an interval, "–" where there is none."""
    return "–" if not bounds else " to ".join(fixed(bound, digits) for bound in bounds)


def duration(seconds: float | None) -> str:
    """Days, hours, minutes, seconds: the two largest that count; "–" for None."""
    if seconds is None:
        return "–"
    left, parts = round(seconds), []
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        amount, left = divmod(left, size)
        parts.append((amount, unit))
    first = next((i for i, (amount, _) in enumerate(parts) if amount), len(parts) - 1)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2])


def date(iso: str) -> str:
    """A logged time, which is in UTC, to the minute."""
    return f"{iso[:16].replace('T', ' ')} UTC"


def in_words(logged: str) -> str:
    """What an earlier version logged of data, model and devices, as it is logged now."""

    def devices(match: re.Match[str]) -> str:
        count, kind, platform, hosts, batch, steps = match.groups()
        return (
            f"{counted(int(count), 'device')} ({'CPU' if platform == 'cpu' else kind}) on "
            f"{counted(int(hosts), 'host')}; {counted(int(steps), 'step')} an epoch, each of a "
            f"batch of {counted(int(batch), 'patch')}"
        )

    words = _CROPS.sub(r" in crops of \1 x \1", logged)
    words = _PATCHES.sub(r"\1 and \2 pixels", _DEVICES.sub(devices, words))
    return words.replace(" -> ", " to ")
