"""The gallery: which patches a page shows, and how a model sees them."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from flair_jax.data import input_pipeline
from flair_jax.data.bands import BANDS, band_places
from flair_jax.data.input_pipeline import Split
from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference.predictor import load_model
from flair_jax.report.collect import RunFacts
from flair_jax.viz import images

LARGEST = 512  # pixels of a picture's side; larger ones are thinned out
_QUALITY = 80
_FEWEST = 0.01  # share of a patch from which a class is named


@dataclasses.dataclass(frozen=True)
class Picture:
    """One picture of a patch.

    Attributes:
        name: what it shows.
        note: what to read below it.
        uri: the picture itself, as a data URI.
        width, height: in pixels.
        sharp: whether enlarging must not blur it, as with maps of classes.
    """

    name: str
    note: str
    uri: str
    width: int
    height: int
    sharp: bool


@dataclasses.dataclass(frozen=True)
class Shown:
    """A patch of the gallery: its line of `patches.json`, its pictures, its commonest mistake."""

    patch: dict[str, Any]
    pictures: list[Picture]
    mistake: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Patches by what they stand for; or why there are none."""

    groups: dict[str, list[Shown]]
    present: list[int]
    missing: str = ""


def make_gallery(run: RunFacts, count: int) -> Gallery:
    """Chooses patches by their scores, and has them predicted by the checkpoint that was scored.

    Args:
        run: the run.
        count: patches of each kind: best, most typical, worst.

    Returns:
        The gallery; where scores, data set or checkpoint are not at hand it says so.
    """
    if run.patches is None:
        return _none(
            f"the scores of single patches are not there. They come with\n"
            f"flair-jax evaluate --workdir={run.workdir} --split={run.split}"
        )
    chosen = choose(run.patches, count)
    if not any(chosen.values()):
        return _none("no patch has a scored class")
    try:
        directory = input_pipeline.dataset_directory(run.config.data_dir, run.config.data_config)
        split = input_pipeline.open_split(directory, run.split)
    except UserError as error:
        return _none(f"the data set is not at hand: {error}")
    except (OSError, ValueError) as error:
        return _none(f"the data set cannot be read: {error}")
    if any(not _is_there(split, patch) for patches in chosen.values() for patch in patches):
        return _none(f"{directory} is not the data set that was scored")
    assert run.metrics is not None  # or there would be no patches
    try:
        model = load_model(run.workdir, run.metrics["step"])
    except UserError as error:
        return _none(f"the checkpoint that was scored is not at hand: {error}")
    groups: dict[str, list[Shown]] = {}
    present: set[int] = set()
    for kind, patches in chosen.items():
        groups[kind] = []
        for patch in patches:
            image, truth, probabilities = _predict(split, patch["place"], model)
            present |= set(np.unique([truth, probabilities.argmax(-1)]).tolist())
            groups[kind].append(show(patch, image, truth, probabilities, run.nomenclature))
    return Gallery(groups, sorted(present & set(range(len(run.nomenclature)))))


def _none(why: str) -> Gallery:
    return Gallery({}, [], why)


def choose(patches: Sequence[dict[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """The patches that were scored best and worst, and those nearest to the median.

    Of each kind the patches are of different zones, as far as there are enough of them; none is
    shown twice. Among equals, one with more classes goes first.

    Args:
        patches: of `patches.json`.
        count: how many of each kind; fewer if there are less than three times as many patches.

    Returns:
        Patches by kind: "best", "typical", "worst".
    """
    scored = [patch for patch in patches if patch["miou"] is not None]
    if not scored:
        return {}
    count = min(count, max(1, len(scored) // 3))
    median = float(np.median([patch["miou"] for patch in scored]))
    orders = {
        "best": lambda patch: (-patch["miou"], -patch["classes"], patch["place"]),
        "worst": lambda patch: (patch["miou"], -patch["classes"], patch["place"]),
        "typical": lambda patch: (
            abs(patch["miou"] - median), -patch["classes"], patch["place"],
        ),
    }  # fmt: skip
    taken: set[int] = set()
    chosen = {}
    for kind, order in orders.items():
        left = sorted((p for p in scored if p["place"] not in taken), key=order)
        chosen[kind] = _of_different_zones(left, count)
        taken |= {patch["place"] for patch in chosen[kind]}
    return {kind: chosen[kind] for kind in ("best", "typical", "worst")}


def _of_different_zones(ordered: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    zones: set[tuple[str, str]] = set()
    first_of_zone, others = [], []
    for patch in ordered:
        zone = (patch["domain"], patch["zone"])
        if zone in zones:
            others.append(patch)
        else:
            first_of_zone.append(patch)
        zones.add(zone)
    kept = (first_of_zone + others)[:count]
    return [patch for patch in ordered if patch in kept]


def _is_there(split: Split, patch: dict[str, Any]) -> bool:
    if patch["place"] >= len(split):
        return False
    return input_pipeline.as_text(split.records[patch["place"]]["id"]) == patch["id"]


def _predict(split: Split, place: int, model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A patch with all its bands, its true labels, and the model's probabilities."""
    spec = model.spec
    batch = next(
        input_pipeline.batches(
            split, np.array([[place]]), metadata_encoding=spec.metadata_encoding
        )
    )  # fmt: skip
    image = batch["image"]
    probabilities = model(image[..., band_places(spec.bands)], batch.get("metadata"))
    return image[0], spec.nomenclature.labels[batch["mask"][0]], np.asarray(probabilities[0])


def show(
    patch: dict[str, Any],
    image: np.ndarray,
    truth: np.ndarray,
    probabilities: np.ndarray,
    nomenclature: Nomenclature,
) -> Shown:
    """The pictures of a patch: colour, infrared, truth, prediction, confidence.

    Args:
        patch: its line of `patches.json`.
        image: (H, W, bands) uint8, all of FLAIR's bands.
        truth: (H, W) labels.
        probabilities: (H, W, classes).
        nomenclature: the classes.
    """
    predicted = probabilities.argmax(-1)
    confidence = probabilities.max(-1)
    drawn = []
    for name in images.COMPOSITES:
        picture = images.composite(image, BANDS, name)
        if picture is not None:
            drawn.append(_photo(name, "", picture))
    drawn.append(_class_map("truth", truth, nomenclature))
    drawn.append(_class_map("prediction", predicted, nomenclature))
    drawn.append(
        _photo("confidence", f"{confidence.mean():.2f} on average", images.grey(confidence))
    )
    return Shown(patch, drawn, _mistake(truth, predicted, nomenclature))


def _mistake(truth: np.ndarray, predicted: np.ndarray, nomenclature: Nomenclature) -> str:
    """The commonest mistake in words, or "" for a patch without any."""
    n = len(nomenclature)
    scored = np.append(nomenclature.weights > 0, np.zeros(256 - n, bool))[truth]
    wrong = scored & (truth != predicted)
    if not wrong.any():
        return ""
    pairs = np.bincount(truth[wrong].astype(int) * n + predicted[wrong], minlength=n * n)
    of, to = divmod(int(np.argmax(pairs)), n)
    share = np.max(pairs) / truth.size
    names = nomenclature.names
    return (
        f"{names[of]} taken for {names[to]}, {share:.0%} of the patch" if share >= _FEWEST else ""
    )


def class_shares(labels: np.ndarray, nomenclature: Nomenclature, most: int = 3) -> str:
    """The commonest classes in words: "water 62 %, deciduous 20 %"."""
    counts = np.bincount(labels.ravel(), minlength=256)[: len(nomenclature)] / labels.size
    order = [i for i in np.argsort(-counts, kind="stable")[:most] if counts[i] >= _FEWEST]
    return ", ".join(f"{nomenclature.names[i]} {counts[i]:.0%}" for i in order)


def _class_map(name: str, labels: np.ndarray, nomenclature: Nomenclature) -> Picture:
    picture = Image.fromarray(_thin(labels).astype(np.uint8))
    picture.putpalette(images.palette(nomenclature).tobytes())
    note = class_shares(labels, nomenclature)
    return _picture(name, note, picture, "png", sharp=True, optimize=True)


def _photo(name: str, note: str, picture: np.ndarray) -> Picture:
    return _picture(name, note, Image.fromarray(_thin(picture)), "webp", quality=_QUALITY)


def _thin(pixels: np.ndarray) -> np.ndarray:
    step = -(-max(pixels.shape[:2]) // LARGEST)
    return np.ascontiguousarray(pixels[::step, ::step])


def _picture(
    name: str, note: str, image: Image.Image, form: str, sharp: bool = False, **options: Any
) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    uri = f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Picture(name, note, uri, image.width, image.height, sharp)
