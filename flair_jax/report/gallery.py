"""The gallery: choice of patches, their images and their predictions."""

import base64
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from flair_jax.config import is_of_ema
from flair_jax.data import dataset, input_pipeline
from flair_jax.data.bands import band_indices
from flair_jax.data.dataset import Split
from flair_jax.data.nomenclature import Nomenclature
from flair_jax.errors import UserError
from flair_jax.inference.predictor import load_model
from flair_jax.report.collect import RunFacts
from flair_jax.viz import images

LARGEST = 512  # pixels of an image's side; larger images are subsampled
_QUALITY = 80
_FEWEST = 0.01  # share of a patch from which a class is named


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """One image of a patch.

    Attributes:
        name: what it shows.
        note: caption below it.
        uri: the image itself, as a data URI.
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
class GalleryPatch:
    """A patch of the gallery.

    Attributes:
        patch: its line of `patches.json`.
        thumbnails: its images.
        labelled: share of its pixels that have a class.
        accuracy: share of these that are right, as the page's overall accuracy; `patches.json`
            leaves out pixels of classes that are not scored.
        mistake: the most common one, in words.
    """

    patch: dict[str, Any]
    thumbnails: list[Thumbnail]
    labelled: float
    accuracy: float
    mistake: str


@dataclasses.dataclass(frozen=True)
class Gallery:
    """Patches by kind, and the classes in them; or why there are none."""

    groups: dict[str, list[GalleryPatch]]
    present: list[int]
    missing: str = ""

    @property
    def has_unlabelled(self) -> bool:
        """Whether some pixels have no class in truth."""
        shown = (patch for patches in self.groups.values() for patch in patches)
        return any(patch.labelled < 1 for patch in shown)

    @property
    def has_infrared(self) -> bool:
        """Whether the images are shown in infrared too."""
        shown = (patch for patches in self.groups.values() for patch in patches)
        return any(image.name == "infrared" for patch in shown for image in patch.thumbnails)


def make_gallery(run: RunFacts, count: int) -> Gallery:
    """Chooses patches by their scores, and has them predicted by the checkpoint that was scored.

    Args:
        run: the run.
        count: patches of each kind: best, most typical, worst.

    Returns:
        The gallery; where scores, data set or checkpoint are not available, the reason.
    """
    if run.patches is None:
        return _none(
            f"there are no scores of single patches. They are written by\n"
            f"flair-jax evaluate --workdir={run.workdir} --split={run.split}"
        )
    chosen = choose(run.patches, count)
    if not any(chosen.values()):
        return _none("no patch has a scored class")
    try:
        directory = dataset.dataset_directory(run.config.data_dir, run.config.data_config)
        split = dataset.open_split(directory, run.split)
    except UserError as error:
        return _none(f"the data set is not available: {error}")
    except (OSError, ValueError) as error:
        return _none(f"the data set cannot be read: {error}")
    if any(not _is_in_split(split, patch) for patches in chosen.values() for patch in patches):
        return _none(f"{directory} is not the data set that was scored")
    assert run.metrics is not None  # or there would be no patches
    try:
        model = load_model(run.workdir, run.metrics["step"], ema=is_of_ema(run.config.monitor))
    except UserError as error:
        return _none(f"the scored checkpoint is not available: {error}")
    groups: dict[str, list[GalleryPatch]] = {}
    present: set[int] = set()
    for kind, patches in chosen.items():
        groups[kind] = []
        for patch in patches:
            image, truth, probabilities = _predict(split, patch["place"], model)
            present |= set(np.unique([truth, probabilities.argmax(-1)]).tolist())
            groups[kind].append(
                gallery_patch(
                    patch, image, truth, probabilities, run.nomenclature, split.data.bands
                )
            )
    return Gallery(groups, sorted(present & set(range(len(run.nomenclature)))))


def _none(why: str) -> Gallery:
    return Gallery({}, [], why)


def choose(patches: Sequence[dict[str, Any]], count: int) -> dict[str, list[dict[str, Any]]]:
    """The patches that were scored best and worst, and those nearest to the median.

    Of each kind the patches are of different zones, as far as there are enough of them; none is
    shown twice. Among equals, one with more classes goes first. Patches with less than half of the
    largest number of scored pixels, such as those at the rim of an image, are passed over.

    Args:
        patches: of `patches.json`.
        count: how many of each kind; fewer if there are less than three times as many patches.

    Returns:
        Patches by kind: "best", "typical", "worst".
    """
    scored = [patch for patch in patches if patch["miou"] is not None]
    if not scored:
        return {}
    pixels = [patch.get("pixels", 1) for patch in scored]  # earlier versions did not write them
    scored = [p for p, of in zip(scored, pixels, strict=True) if 2 * of >= max(pixels)]
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


def _is_in_split(split: Split, patch: dict[str, Any]) -> bool:
    if patch["place"] >= len(split):
        return False
    return dataset.as_text(split.records[patch["place"]]["id"]) == patch["id"]


def _predict(split: Split, index: int, model: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A patch with all its bands, its true labels, and the model's probabilities."""
    spec = model.spec
    batch = next(
        input_pipeline.batches(
            split, np.array([[index]]), metadata_encoding=spec.metadata_encoding
        )
    )  # fmt: skip
    image = batch["image"]
    probabilities = model(
        image[..., band_indices(spec.bands, split.data.bands)], batch.get("metadata")
    )
    labels = spec.for_masks_of(split.data).nomenclature.labels
    return image[0], labels[batch["mask"][0]], np.asarray(probabilities[0])


def gallery_patch(
    patch: dict[str, Any],
    image: np.ndarray,
    truth: np.ndarray,
    probabilities: np.ndarray,
    nomenclature: Nomenclature,
    bands: Sequence[str],
) -> GalleryPatch:
    """The images of a patch: colour, infrared, truth, prediction, confidence.

    Where the bands give neither colour nor infrared, the first one in grey.

    Args:
        patch: its line of `patches.json`.
        image: (H, W, bands) uint8, all bands of the data set.
        truth: (H, W) labels.
        probabilities: (H, W, classes).
        nomenclature: the classes.
        bands: names of the image's bands.
    """
    predicted = probabilities.argmax(-1)
    confidence = probabilities.max(-1)
    thumbnails = []
    for name in images.COMPOSITES:
        composite = images.composite(image, bands, name)
        if composite is not None:
            thumbnails.append(_photo(name, "", composite))
    if not thumbnails:
        thumbnails.append(_photo(bands[0], "", images.grey(image[..., 0] / 255)))
    thumbnails.append(_class_map("truth", truth, nomenclature))
    thumbnails.append(_class_map("prediction", predicted, nomenclature))
    thumbnails.append(
        _photo("confidence", f"{confidence.mean():.2f} on average", images.grey(confidence))
    )
    labelled = truth < len(nomenclature)
    right = float((truth == predicted)[labelled].mean())  # a patch without labels has no scores
    return GalleryPatch(
        patch, thumbnails, float(labelled.mean()), right, _mistake(truth, predicted, nomenclature)
    )


def _mistake(truth: np.ndarray, predicted: np.ndarray, nomenclature: Nomenclature) -> str:
    """The most common mistake in words, or "" for a patch without any."""
    n = len(nomenclature)
    wrong = (truth < n) & (truth != predicted)
    if not wrong.any():
        return ""
    pairs = np.bincount(truth[wrong].astype(int) * n + predicted[wrong], minlength=n * n)
    of, to = divmod(int(np.argmax(pairs)), n)
    share = np.max(pairs) / truth.size
    names = nomenclature.names
    return (
        f"most common error: {names[of]} predicted as {names[to]}, {share:.0%} of the patch"
        if share >= _FEWEST
        else ""
    )


def class_shares(labels: np.ndarray, nomenclature: Nomenclature, most: int = 3) -> str:
    """The most common classes in words: "water 62 %, deciduous 20 %"."""
    counts = np.bincount(labels.ravel(), minlength=256)[: len(nomenclature)] / labels.size
    order = [i for i in np.argsort(-counts, kind="stable")[:most] if counts[i] >= _FEWEST]
    return ", ".join(f"{nomenclature.names[i]} {counts[i]:.0%}" for i in order)


def _class_map(name: str, labels: np.ndarray, nomenclature: Nomenclature) -> Thumbnail:
    image = Image.fromarray(_subsample(labels).astype(np.uint8))
    image.putpalette(images.palette(nomenclature).tobytes())
    note = class_shares(labels, nomenclature)
    return _thumbnail(name, note, image, "png", sharp=True, optimize=True)


def _photo(name: str, note: str, image: np.ndarray) -> Thumbnail:
    return _thumbnail(name, note, Image.fromarray(_subsample(image)), "webp", quality=_QUALITY)


def _subsample(pixels: np.ndarray) -> np.ndarray:
    step = -(-max(pixels.shape[:2]) // LARGEST)
    return np.ascontiguousarray(pixels[::step, ::step])


def _thumbnail(
    name: str, note: str, image: Image.Image, format_name: str, sharp: bool = False, **options: Any
) -> Thumbnail:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    uri = f"data:image/{format_name};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return Thumbnail(name, note, uri, image.width, image.height, sharp)
