"""Names of bands by their descriptions, and the stretch of other types to uint8.

The builder of data sets and the detection on rasters both read bands by these functions, so that a
model finds the bands that it was trained on in the files that it was trained on.
"""

import re
from collections.abc import Sequence

import numpy as np

ALIASES = {
    "red": ("red", "r", "rouge", "rot", "rojo", "rosso"),
    "green": ("green", "g", "vert", "grün", "gruen", "verde"),
    "blue": ("blue", "b", "bleu", "blau", "azul", "blu"),
    "nir": (
        "nir", "near infrared", "nearinfrared", "infrared", "pir", "infrarouge",
        "proche infrarouge",
    ),
}  # fmt: skip
# Bands that are none of these, whatever the file's colour interpretation is.
OTHER_BANDS = frozenset({
    "pan", "panchromatic", "coastal", "coastal blue", "yellow", "cirrus", "swir", "swir1", "swir2",
    "mwir", "lwir", "tir", "thermal", "rededge", "red edge", "ndvi", "ndwi", "alpha",
    "mask", "cyan", "magenta", "black", "hue", "saturation", "lightness", "y", "cb", "cr",
    "other_ir",
})  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")
_MEANINGLESS = {"b", "band", "bande", "channel", "canal", "nm"}  # beside the name of a colour

Stretch = Sequence[tuple[float, float]]


def name_of(description: str) -> str:
    """Returns the name of a band: red, green, blue or nir, else its description in one word.

    Args:
      description: in any case and of several languages; "Band 3: Blue", "near-infrared" and "bleu"
        are known. A name that this function has returned is returned as it is.
    """
    text = re.sub(r"[^\w.-]+", "_", description.lower()).strip("_-.")
    plain = plain_words(description)
    for name, aliases in ALIASES.items():
        if text in aliases or (len(plain) > 1 and plain in aliases):
            return name
    return text


def names_of(descriptions: Sequence[str]) -> tuple[str, ...]:
    """Returns the names of some bands; as they are given, if two would have the same."""
    names = tuple(map(name_of, descriptions))
    return names if len(set(names)) == len(names) else tuple(descriptions)


def is_other(description: str) -> bool:
    """Returns whether a description names a band that is no red, green, blue or near infrared."""
    return plain_words(description) in OTHER_BANDS or description.strip().lower() in OTHER_BANDS


def plain_words(description: str) -> str:
    """Returns the words of a description that mean something, in lower case, without numbers."""
    return " ".join(w for w in _WORD.findall(description.lower()) if w not in _MEANINGLESS)


def mentioned(description: str) -> set[str]:
    """Returns the bands that occur among the words of a description."""
    words = {word for word in _WORD.findall(description.lower()) if len(word) > 1}
    names = {name for name, aliases in ALIASES.items() if not words.isdisjoint(aliases)}
    return names | (words & OTHER_BANDS)


def stretched(pixels: np.ndarray, stretch: Stretch, valid: np.ndarray) -> np.ndarray:
    """Returns pixels as uint8, linearly from the lowest value to 0 and from the highest to 255.

    Args:
      pixels: (bands, rows, columns) of any real type.
      stretch: (lowest, highest) of each band; values beyond become 0 and 255.
      valid: (rows, columns) bool; other pixels become 0.
    """
    low, high = np.array(stretch, np.float64)[..., None, None].swapaxes(0, 1)
    scaled = 255 * (np.where(valid, pixels, low) - low) / (high - low)
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)
