"""Display images: band composites, painted class maps, overlays, legends, PNG files."""

import io
from collections.abc import Sequence

import numpy as np
from etils import epath
from PIL import Image, ImageDraw, ImageFont

from flair_jax.data.nomenclature import Nomenclature
from flair_jax.runtime.atomic_io import atomic_write

# Bands displayed as red, green and blue. In "infrared", living plants are red.
COMPOSITES = {"colour": ("red", "green", "blue"), "infrared": ("nir", "red", "green")}
NOTHING = (200, 200, 200)  # where there is no class
NO_DATA = "no data"  # what a legend calls it
_FONT = 16
_GAP = 10
TITLE_HEIGHT = 32  # of a title and of a scale bar, in pixels


def composite(image: np.ndarray, bands: Sequence[str], name: str) -> np.ndarray | None:
    """An RGB composite of an image's bands.

    Args:
        image: (H, W, bands) uint8 digital numbers.
        bands: names of its bands.
        name: one of `COMPOSITES`.

    Returns:
        (H, W, 3) uint8, red, green, blue; None if the image lacks one of the bands.
    """
    if not set(COMPOSITES[name]) <= set(bands):
        return None
    return np.ascontiguousarray(image[..., [list(bands).index(b) for b in COMPOSITES[name]]])


def palette(nomenclature: Nomenclature) -> np.ndarray:
    """(256, 3) uint8: the colour of every label; what is no class is grey."""
    colours = np.full((256, 3), NOTHING, np.uint8)
    colours[: len(nomenclature)] = nomenclature.rgb
    return colours


def paint(labels: np.ndarray, nomenclature: Nomenclature) -> np.ndarray:
    """A class map in the nomenclature's colours.

    Args:
        labels: (H, W) integers, classes from 0; what is no class becomes grey.
        nomenclature: the classes.

    Returns:
        (H, W, 3) uint8.
    """
    return palette(nomenclature)[labels.astype(np.uint8)]


def overlay(
    image: np.ndarray, labels: np.ndarray, nomenclature: Nomenclature, opacity: float = 0.45
) -> np.ndarray:
    """The classes' colours over an image: (H, W, 3) uint8; as it was where there is no class."""
    mixed = (1 - opacity) * image + opacity * paint(labels, nomenclature)
    is_class = (labels < len(nomenclature))[..., None]
    return np.where(is_class, np.rint(mixed), image).astype(np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    """Values from 0 (black) to 1 (white), (H, W), as an image (H, W, 3) uint8."""
    return np.repeat(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)[..., None], 3, -1)


def legend(
    nomenclature: Nomenclature, present: Sequence[int] | None = None, *, nothing: bool = False
) -> np.ndarray:
    """Colours and names of classes below each other.

    Args:
        nomenclature: the classes.
        present: labels of the classes to show; all if None.
        nothing: whether there are pixels without a class, to be explained as "no data".

    Returns:
        (height, width, 3) uint8 on white.
    """
    labels = range(len(nomenclature)) if present is None else sorted(set(map(int, present)))
    rows = [(nomenclature.names[label], nomenclature.classes[label].colour) for label in labels]
    if nothing:
        rows.append((NO_DATA, "#" + bytes(NOTHING).hex()))
    font = ImageFont.load_default(_FONT)
    row, swatch, gap = _FONT + 8, 28, 10
    width = 2 * gap + swatch + gap + round(max((font.getlength(n) for n, _ in rows), default=0))
    canvas = Image.new("RGB", (width, row * len(rows) + 2 * gap), "white")
    draw = ImageDraw.Draw(canvas)
    for row_index, (name, colour) in enumerate(rows):
        top = gap + row_index * row
        box = (gap, top + 3, gap + swatch, top + row - 3)
        draw.rectangle(box, fill=colour, outline="black")
        draw.text((2 * gap + swatch, top + row / 2), name, fill="black", font=font, anchor="lm")
    return np.asarray(canvas)


def with_legend(
    image: np.ndarray,
    nomenclature: Nomenclature,
    present: Sequence[int] | None = None,
    *,
    nothing: bool = False,
) -> np.ndarray:
    """An image (H, W, 3) with its `legend` at its right, on white."""
    names = legend(nomenclature, present, nothing=nothing)
    height = max(len(image), len(names))
    return np.concatenate([_on_white(image, height), _on_white(names, height)], 1)


def with_title(image: np.ndarray, title: str) -> np.ndarray:
    """An image (H, W, 3) with a title above it, on white; wider if the title needs that."""
    font = ImageFont.load_default(_FONT)
    needed = round(font.getlength(title)) + 2 * _GAP
    width = max(image.shape[1], needed)
    canvas = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    ImageDraw.Draw(canvas).text((_GAP, TITLE_HEIGHT / 2), title, "black", font, anchor="lm")
    beside = ((0, 0), (0, width - image.shape[1]), (0, 0))
    return np.concatenate([np.asarray(canvas), np.pad(image, beside, constant_values=255)])


def with_scale_bar(image: np.ndarray, metres: float) -> np.ndarray:
    """An image (H, W, 3) with a scale bar below it, on white.

    Args:
        image: the image.
        metres: of the side of its pixels on the ground.
    """
    length = bar_length(image.shape[1] * metres)
    pixels = max(1, round(length / metres))
    text = f"{length / 1000:g} km" if length >= 1000 else f"{length:g} m"
    font = ImageFont.load_default(_FONT)
    width = max(image.shape[1], 3 * _GAP + pixels + round(font.getlength(text)))
    canvas = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    draw, middle = ImageDraw.Draw(canvas), TITLE_HEIGHT // 2
    draw.rectangle((_GAP, middle - 2, _GAP + pixels - 1, middle + 2), fill="black")
    draw.text((2 * _GAP + pixels, TITLE_HEIGHT / 2), text, "black", font, anchor="lm")
    beside = ((0, 0), (0, width - image.shape[1]), (0, 0))
    return np.concatenate([np.pad(image, beside, constant_values=255), np.asarray(canvas)])


def bar_length(width: float) -> float:
    """The longest of 1, 2, 5, 10, 20, ... that is at most a third of a width."""
    power = 10.0 ** np.floor(np.log10(width / 3))
    return float(max(factor * power for factor in (1, 2, 5) if factor * power <= width / 3))


def _on_white(image: np.ndarray, height: int) -> np.ndarray:
    below = ((0, height - len(image)), (0, 0), (0, 0))
    return np.pad(image, below, constant_values=255)


def png(image: np.ndarray) -> bytes:
    """An image (H, W, 3) or (H, W), uint8, as a PNG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_png(path: epath.PathLike, image: np.ndarray) -> None:
    """Writes an image as a PNG file, atomically."""
    atomic_write(path, png(image))
