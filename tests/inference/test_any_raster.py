"""Property-based test of detection: rasters of all kinds, compared with a plain oracle.

The network is replaced by a function of the pixel alone, so that the right map is known. The oracle
knows which band is which and where the pixels lie because it has drawn the files; which of them are
valid it asks rasterio's `dataset_mask`.
"""

import dataclasses
import functools
import re
import tempfile
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import rasterio
from detecting import random_spec
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine

import flair_jax
from flair_jax.errors import UserError
from flair_jax.inference import outputs, preparation
from flair_jax.inference.predictor import Model
from flair_jax.runtime.sharding import make_mesh

RGB = ("red", "green", "blue")
MODELS = (RGB, (*RGB, "nir"), ("nir", "red", "green"), (*RGB, "nir", "height"))
NAMES = {"red": "Red", "green": "GREEN", "blue": "bleu", "nir": " NIR ", "height": "height",
         "other": "Band 9"}  # fmt: skip
COLOURS = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue,
           "nir": ColorInterp.nir}  # fmt: skip
# Origin and pixel size in units of the coordinate system.
GRIDS = {
    "EPSG:2154": (900_000, 6_500_000, 0.2), "EPSG:3857": (261_600, 6_250_000, 0.3),
    "EPSG:4326": (2.3, 48.8, 2e-6), "EPSG:4807": (0.1, 53.0, 2e-6),
    "EPSG:2263": (1_000_000, 200_000, 0.5), "": (0, 0, 0.2),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class File:
    """One raster.

    Attributes:
        size, offset: (rows, columns); the offset on the common grid.
        flips: whether rows go from south to north, and columns from east to west.
        bands: what the bands are, without alpha; "other" is of no use to any model.
        told_by: how the file tells it: "descriptions", "colours", "default" (GDAL's colour
            interpretation), "order" (that of the model).
        masks: a set of "mask" (internal), "msk" (external), "alpha", "nodata".
        alpha_at: index of the alpha band.
        nodata: the value.
        tiled: stored in blocks of 16 x 16, or in strips.
        seed: of the pixels.
    """

    size: tuple[int, int]
    offset: tuple[int, int]
    flips: tuple[bool, bool]
    bands: tuple[str, ...]
    told_by: str
    masks: frozenset[str]
    alpha_at: int
    nodata: int
    tiled: bool
    seed: int

    @property
    def all_bands(self):
        bands = list(self.bands)
        if "alpha" in self.masks:
            bands.insert(self.alpha_at, "alpha")
        return bands


@dataclasses.dataclass(frozen=True)
class Scene:
    """The files of one detection.

    Attributes:
        wanted: the model's bands.
        files: the rasters, the last one on top.
        crs: "" for none.
        oblong: ratio of a pixel's height to its width.
        angle: by which the grid is turned, in degrees.
        gcps: whether ground control points take the place of a geotransform.
        numbered: whether --bands tells what the bands are.
        margin: of the tiles.
    """

    wanted: tuple[str, ...]
    files: tuple[File, ...]
    crs: str
    oblong: float
    angle: float
    gcps: bool
    numbered: bool
    margin: int

    @property
    def grid(self):
        x, y, size = GRIDS[self.crs]
        scale = Affine.scale(size, -size * self.oblong)
        return Affine.translation(x, y) @ Affine.rotation(self.angle) @ scale

    @property
    def is_unclear(self):
        """Whether the bands of a file can only be guessed."""
        if self.numbered:
            return False
        # GDAL tags any three or four bands red, green, blue.
        wrong = self.wanted[:3] != RGB and len(self.wanted) in (3, 4)
        return wrong and any(f.told_by == "default" for f in self.files)


@st.composite
def files(draw, wanted, numbered):
    told_by = draw(st.sampled_from(["descriptions", "colours", "default", "order"]))
    bands = wanted
    if numbered:
        bands = numbered
    elif told_by in ("descriptions", "colours"):
        others = ("other",) if told_by == "descriptions" and draw(st.booleans()) else ()
        bands = draw(st.permutations([*wanted, *others]))
    masks = draw(st.sets(st.sampled_from(["mask", "msk", "alpha", "nodata"]), max_size=3))
    alpha_at = draw(st.integers(0, len(bands)))
    if numbered:  # the same bands in all files
        masks.discard("alpha")
    if told_by == "default" and "alpha" in masks:
        alpha_at = len(bands)
        if len(bands) != 3:
            masks.discard("alpha")
    # Small files do not show that a band is no alpha.
    side = st.integers(8 if told_by == "default" else 1, 45)
    return File(
        size=draw(st.tuples(side, side)),
        offset=draw(st.tuples(st.integers(-40, 40), st.integers(-40, 40))),
        flips=draw(st.tuples(st.booleans(), st.booleans())),
        bands=tuple(bands),
        told_by=told_by,
        masks=frozenset(masks - {"msk"} if "mask" in masks else masks),
        alpha_at=alpha_at,
        nodata=draw(st.sampled_from([0, 255, 7])),
        tiled=draw(st.booleans()),
        seed=draw(st.integers(0, 2**16)),
    )


@st.composite
def scenes(draw):
    wanted = draw(st.sampled_from(MODELS))
    numbered = ()
    if draw(st.integers(0, 3)) == 0:
        numbered = tuple(draw(st.permutations([*wanted, "other"])))
    crs = draw(st.sampled_from(sorted(GRIDS)))
    count = draw(st.sampled_from([1, 1, 2, 3]))
    return Scene(
        wanted=wanted,
        files=tuple(draw(files(wanted, numbered)) for _ in range(count)),
        crs=crs,
        oblong=draw(st.sampled_from([1.0, 2.0])),
        angle=draw(st.sampled_from([0.0, 0.0, 30.0])),
        gcps=count == 1 and crs != "" and draw(st.integers(0, 3)) == 0,
        numbered=bool(numbered),
        margin=draw(st.sampled_from([0, 3])),
    )


def blocks(rng, size, values):
    """(rows, columns) uint8: blocks of 4 x 4 pixels, so that masks have shapes."""
    small = rng.choice(values, [-(-side // 4) for side in size])
    return small.repeat(4, 0).repeat(4, 1)[: size[0], : size[1]].astype(np.uint8)


def write(path, file, scene):
    rng = np.random.default_rng(file.seed)
    rows, columns = file.size
    bands = file.all_bands
    pixels = rng.integers(0, 256, (len(bands), rows, columns), dtype=np.uint8)
    holes = blocks(rng, file.size, [0, 0, 1]).astype(bool)
    pixels[:, holes] = file.nodata  # of all bands; whether they count depends on `masks`
    pixels[rng.integers(len(bands)), blocks(rng, file.size, [0, 0, 1]).astype(bool)] = file.nodata
    if "alpha" in file.masks:
        pixels[bands.index("alpha")] = blocks(rng, file.size, [0, 255, 255])
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": len(bands), "height": rows, "width": columns,
        "nodata": file.nodata if "nodata" in file.masks else None,
    }  # fmt: skip
    if file.tiled:
        profile |= {"tiled": True, "blockxsize": 16, "blockysize": 16}
    if file.told_by != "default":
        profile["photometric"] = "minisblack"
    if scene.gcps:
        corners = [(0, 0), (0, columns), (rows, 0), (rows, columns)]
        places = [transform_of(file, scene) @ (x, y) for y, x in corners]
        profile["gcps"] = [
            GroundControlPoint(*corner, *place)
            for corner, place in zip(corners, places, strict=True)
        ]
    else:
        profile["transform"] = transform_of(file, scene)
    profile["crs"] = scene.crs or None
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK="mask" in file.masks),
        rasterio.open(path, "w", **profile) as raster,
    ):
        if file.told_by == "descriptions":
            raster.descriptions = ["" if b == "alpha" else NAMES[b] for b in bands]
        if file.told_by != "default":
            known = COLOURS if file.told_by == "colours" else {}
            known = known | {"alpha": ColorInterp.alpha}
            raster.colorinterp = [known.get(b, ColorInterp.undefined) for b in bands]
        raster.write(pixels)
        if file.masks & {"mask", "msk"}:
            raster.write_mask(blocks(rng, file.size, [0, 255, 255]))
    return str(path)


def transform_of(file, scene):
    (rows, columns), (top, left) = file.size, file.offset
    transform = scene.grid @ Affine.translation(left, top)
    if file.flips[0]:
        transform = transform @ Affine.translation(0, rows) @ Affine.scale(1, -1)
    if file.flips[1]:
        transform = transform @ Affine.translation(columns, 0) @ Affine.scale(-1, 1)
    return transform


def valid_pixels(raster, file):
    if file.masks & {"mask", "msk"}:
        return raster.dataset_mask() > 0
    if "alpha" in file.masks:  # rasterio expects it at the end
        return raster.read(file.all_bands.index("alpha") + 1) > 0
    if len(file.all_bands) == 4:  # rasterio, and GDAL by default, take the fourth for alpha
        return raster.read_masks().any(0) if "nodata" in file.masks else np.ones(file.size, bool)
    return raster.dataset_mask() > 0


def classify(image):
    """Class of each pixel (..., bands): every band and its position matter."""
    return (image.astype(int) @ np.array([1, 3, 7, 15, 31])[: image.shape[-1]]) % 251 % 13


def expected_map(paths, scene):
    """The map, and its geotransform."""
    corners = np.array([(*f.offset, *np.add(f.offset, f.size)) for f in scene.files])
    top, left = corners[:, :2].min(0)
    bottom, right = corners[:, 2:].max(0)
    canvas = np.full((bottom - top, right - left), 255, np.uint8)
    for path, file in zip(paths, scene.files, strict=True):
        with rasterio.open(path) as raster:
            image = np.stack([raster.read(file.all_bands.index(b) + 1) for b in scene.wanted], -1)
            valid = valid_pixels(raster, file)
        turn = np.s_[:: -1 if file.flips[0] else 1, :: -1 if file.flips[1] else 1]
        y, x = np.subtract(file.offset, (top, left))
        part = canvas[y : y + file.size[0], x : x + file.size[1]]
        part[valid[turn]] = (classify(image) + 1)[turn][valid[turn]]
    first = scene.files[0]
    box = dataclasses.replace(first, size=canvas.shape, offset=(int(top), int(left)))
    turn = np.s_[:: -1 if first.flips[0] else 1, :: -1 if first.flips[1] else 1]
    return canvas[turn], transform_of(box, scene)


class StandIn:
    """Takes the place of `TilePredictor`."""

    def __init__(self, model, mesh, grid, **_):
        pass

    def __call__(self, images, row, columns):
        return {"classes": classify(images).astype(np.uint8)}


@functools.cache
def stand_in_model(wanted):
    spec = random_spec()
    spec = dataclasses.replace(
        spec, bands=wanted, means=spec.means[: len(wanted)], stds=spec.stds[: len(wanted)]
    )
    return Model("stand-in", make_mesh(), spec, {"unused": jnp.zeros(())}, {}, 0)


def found(files, wanted=RGB, **changes):
    """A scene that failed once, with defaults for what did not matter."""
    default = {
        "size": (8, 8), "offset": (0, 0), "flips": (False, False), "bands": wanted,
        "told_by": "default", "masks": frozenset(), "alpha_at": 0, "nodata": 0, "tiled": False,
        "seed": 0,
    }  # fmt: skip
    scene = {"crs": "", "oblong": 1.0, "angle": 0.0, "gcps": False, "numbered": False, "margin": 0}
    return Scene(wanted, tuple(File(**(default | f)) for f in files), **(scene | changes))


# The fourth of four bands with NoData is not alpha, as `dataset_mask` has it.
FOURTH_BAND = found(
    [
        {
            "size": (1, 20),
            "bands": (*RGB, "other"),
            "told_by": "colours",
            "masks": frozenset(["nodata"]),
        }
    ],
    numbered=True,
)
# Noise in few pixels was taken for near infrared in the place of red.
FEW_PIXELS = found([{"seed": 315}, {"seed": 315, "nodata": 7}], (*RGB, "nir"))
# Large coordinates: positions are to be compared in pixels.
TURNED = found(
    [
        {"offset": (-22, 7), "flips": (True, False)}, {"offset": (-1, 0)},
        {"size": (1, 1), "offset": (0, -1), "told_by": "colours"},
    ],
    crs="EPSG:2154", oblong=2.0, angle=30.0,
)  # fmt: skip


def check(scene):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        patch.setattr(preparation, "TilePredictor", StandIn)
        patch.setattr(outputs.images, "write_png", lambda path, _: path.touch())  # saves time
        paths = [write(Path(folder) / f"{i}.tif", f, scene) for i, f in enumerate(scene.files)]
        output = Path(folder) / "map.tif"
        order = scene.files[0].all_bands
        options = {"engine": "jax", "tile": 32, "margin": scene.margin}
        if scene.numbered:
            options["bands"] = tuple(order.index(b) + 1 for b in scene.wanted)
        detect = functools.partial(
            flair_jax.detect_raster, stand_in_model(scene.wanted), paths, output, **options
        )
        if scene.is_unclear:
            with pytest.raises(UserError, match=r"is not clear from the file. List the bands"):
                detect()
            return
        try:
            detect()
        except UserError as error:
            if not re.search(
                "looks like near infrared|If the band tagged alpha is data", str(error)
            ):
                raise
            # Noise in few pixels may look like that: the remedy of the message is followed.
            if len({tuple(file.all_bands) for file in scene.files}) > 1:
                return
            detect(bands=tuple(order.index(b) + 1 for b in scene.wanted))
        expected, transform = expected_map(paths, scene)
        with rasterio.open(output) as raster:
            np.testing.assert_array_equal(raster.read(1), expected)
            tags = raster.tags()
            if scene.gcps:
                with rasterio.open(paths[0]) as source:
                    points = [
                        [(p.row, p.col, p.x, p.y) for p in r.gcps[0]] for r in (source, raster)
                    ]
                    assert points[0] == points[1]
                    assert raster.gcps[1] == source.gcps[1]
            else:
                assert (~transform @ raster.transform).almost_equals(Affine.identity(), 1e-4)
                assert (raster.crs.to_string() if raster.crs else "") == scene.crs
        if len(paths) == 1:
            for band in scene.wanted:
                assert f"{band} {order.index(band) + 1}" in tags["INPUT_BANDS"]


@settings(max_examples=100, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(scenes())
@example(FOURTH_BAND)
@example(FEW_PIXELS)
@example(TURNED)
def test_the_map_is_right_for_any_rasters(scene):
    check(scene)


@pytest.mark.slow
@settings(max_examples=3000, deadline=None, derandomize=True, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(scenes())
def test_the_map_is_right_for_many_rasters(scene):
    check(scene)
