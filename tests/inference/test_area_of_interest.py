"""Areas of interest: the part of the map of everything, whatever the file and its system."""

import json

import detecting
import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import Affine, from_origin
from rasterio.warp import transform as transform_points
from rasters import PLACE, noise, write

from flair_jax.errors import UserError
from flair_jax.inference import vector
from flair_jax.inference.area_of_interest import OutsideError, of_file, within_bounds
from flair_jax.inference.georeference import Georeference
from flair_jax.inference.pixel_grid import PixelGrid

pyogrio = pytest.importorskip("pyogrio")
shapely = pytest.importorskip("shapely")

LEFT, TOP = 900_000, 6_500_000
TRIANGLE = [(LEFT + 3, TOP - 2), (LEFT + 13, TOP - 3), (LEFT + 6, TOP - 9)]  # of 100 x 60 pixels


def grid(transform=PLACE, crs="EPSG:2154", height=60, width=100):
    crs = rasterio.crs.CRS.from_user_input(crs) if crs else None
    return PixelGrid("a.tif", Georeference(crs, transform), width, height, (width, height))


def vectors(path, geometries, crs="EPSG:2154", **more):
    kinds = {g.geom_type for g in geometries if g is not None}
    pyogrio.raw.write(
        path, shapely.to_wkb(np.array(geometries, object)), [], [], crs=crs,
        geometry_type=kinds.pop() if len(kinds) == 1 else "Unknown", **more,
    )  # fmt: skip
    return str(path)


def whole_mask(area, height=60, width=100):
    return area.mask(0, 0, height, width)


def expected_mask(points, transform=PLACE, shape=(60, 100)):
    return rasterize([shapely.Polygon(points)], shape, transform=transform).astype(bool)


def detected(model, path, output, **options):
    detecting.detect(model, path, output, **options)
    with rasterio.open(output) as raster:
        return raster.read(1), raster.transform, raster.tags()


@pytest.mark.parametrize("blend", ["crop", "hann"])
def test_the_map_is_a_part_of_the_map_of_everything(tmp_path, model, blend):
    """The same pixels, with what is around the area as context; only tiles that touch it."""
    path = detecting.write(tmp_path / "in.tif", detecting.patches(150, 200))
    area = vectors(tmp_path / "area.gpkg", [shapely.Polygon(TRIANGLE)])
    options = {"blend": blend, "probabilities": True}
    everything, _, _ = detected(model, path, tmp_path / "a.tif", **options)
    part, transform, tags = detected(model, path, tmp_path / "b.tif", aoi=area, **options)
    inside = expected_mask(TRIANGLE, shape=(150, 200))
    rows, columns = (np.flatnonzero(inside.any(axis)) for axis in (1, 0))
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert abs(part.shape[0] - inside[window].shape[0]) <= 1  # of the bounds
    top, left = round((TOP - transform.f) / 0.2), round((transform.c - LEFT) / 0.2)
    window = np.s_[top : top + part.shape[0], left : left + part.shape[1]]
    assert inside[window].sum() == inside.sum()
    np.testing.assert_array_equal(part, np.where(inside, everything, 255)[window])
    assert len(np.unique(part)) > 3
    a, b = (detecting.read(tmp_path / f"{name}_probabilities.tif") for name in "ab")
    np.testing.assert_array_equal(b, np.where(inside, a, 0)[(slice(None), *window)])
    assert tags["AREA_OF_INTEREST"].startswith(f"{area}: 1 polygon in EPSG:2154, sha256 ")


def test_only_tiles_that_touch_it_are_read_and_computed(tmp_path, model, monkeypatch, capsys):
    from flair_jax.inference.tile_predictor import TilePredictor

    path = detecting.write(tmp_path / "in.tif", detecting.patches(150, 200))
    computed = []
    plain = TilePredictor.__call__

    def counting(self, images, row, columns):
        computed.extend((row, column) for column in columns)
        return plain(self, images, row, columns)

    monkeypatch.setattr(TilePredictor, "__call__", counting)
    detected(model, path, tmp_path / "a.tif")
    assert len(computed) == 4 * 6
    computed.clear()
    # Rows 45 to 62 and columns 75 to 84; tiles complete rows 43 to 74, columns 68 to 99.
    bounds = LEFT + 15, TOP - 12.6, LEFT + 17, TOP - 9
    part, transform, tags = detected(model, path, tmp_path / "b.tif", bounds=bounds)
    assert computed == [(1, 2)]
    assert part.shape == (18, 10)
    assert transform.almost_equals(from_origin(LEFT + 15, TOP - 9, 0.2, 0.2))
    np.testing.assert_array_equal(part, detecting.read(tmp_path / "a.tif")[0, 45:63, 75:85])
    assert tags["AREA_OF_INTEREST"] == "--bounds=900015,6499987.4,900017,6499991"
    printed = capsys.readouterr().out
    assert "the map is 10 x 18 pixels from column 75, row 45" in printed
    assert "at most 1 of the 24 of 64 x 64 pixels" in printed


def test_the_area_is_one_of_the_settings(tmp_path, model):
    path = detecting.write(tmp_path / "in.tif", detecting.patches(60, 100))
    area = vectors(tmp_path / "area.gpkg", [shapely.Polygon(TRIANGLE)])
    detecting.detect(model, path, tmp_path / "a.tif", aoi=area)
    detecting.detect(model, path, tmp_path / "a.tif", aoi=area, resume=True)
    vectors(tmp_path / "area.gpkg", [shapely.Polygon([(x + 1, y) for x, y in TRIANGLE])])
    for options in ({"aoi": area}, {}, {"bounds": (LEFT, TOP - 5, LEFT + 5, TOP)}):
        with pytest.raises(UserError, match="but not from an interrupted detection with these set"):
            detecting.detect(model, path, tmp_path / "a.tif", resume=True, **options)


def test_with_a_resolution(tmp_path, model):
    path = detecting.write(tmp_path / "in.tif", detecting.patches(120, 200))
    bounds = LEFT + 4, TOP - 12, LEFT + 20, TOP - 8
    everything, _, _ = detected(model, path, tmp_path / "a.tif", resolution=0.4)
    part, transform, _ = detected(model, path, tmp_path / "b.tif", resolution=0.4, bounds=bounds)
    np.testing.assert_array_equal(part, everything[20:30, 10:50])
    assert transform.almost_equals(from_origin(LEFT + 4, TOP - 8, 0.4, 0.4))


# Which pixels belong to it.


@pytest.mark.parametrize(
    ("name", "driver"), [("a.gpkg", "GPKG"), ("a.shp", "ESRI Shapefile"), ("a.geojson", "GeoJSON")]
)
def test_files_of_all_kinds(tmp_path, name, driver):
    path = vectors(tmp_path / name, [shapely.Polygon(TRIANGLE)], driver=driver)
    np.testing.assert_array_equal(whole_mask(of_file(path, grid())), expected_mask(TRIANGLE))


def test_parts_of_the_mask_are_those_of_the_whole(tmp_path):
    polygons = [
        shapely.box(LEFT + x, TOP - y - 3, LEFT + x + 4, TOP - y) for x, y in ((1, 1), (9, 4))
    ]
    area = of_file(vectors(tmp_path / "a.gpkg", polygons), grid())
    whole = whole_mask(area)
    assert whole.sum() == 2 * 15 * 20
    assert area.window == (5, 5, 30, 60)
    for top, left, bottom, right in ((0, 0, 7, 9), (10, 20, 60, 100), (0, 70, 60, 71)):
        np.testing.assert_array_equal(
            area.mask(top, left, bottom, right), whole[top:bottom, left:right]
        )
        assert area.touches(top, left, bottom, right) == whole[top:bottom, left:right].any()


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:32631", "EPSG:3857"])
def test_any_coordinate_system(tmp_path, crs):
    """Of a large raster, on which edges that are straight in the file are curved."""
    place = from_origin(700_000, 6_700_000, 100, 100)
    raster = grid(place, height=2000, width=2000)
    corners = [
        (720_000, 6_690_000),
        (880_000, 6_680_000),
        (870_000, 6_530_000),
        (740_000, 6_520_000),
    ]
    x, y = transform_points("EPSG:2154", crs, *zip(*corners, strict=True))
    polygon = shapely.Polygon(list(zip(x, y, strict=True)))
    area = of_file(vectors(tmp_path / "a.gpkg", [polygon], crs), raster)
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(0, 2000, (2, 4000))
    centres = place @ (columns + 0.5, rows + 0.5)
    points = np.array(transform_points("EPSG:2154", crs, *centres)).T
    expected = shapely.contains_xy(polygon, points)
    found = area.mask(0, 0, 2000, 2000)[rows, columns]
    assert (found == expected).mean() > 0.999
    assert 0.5 < expected.mean() < 0.7


@pytest.mark.parametrize("place", ["south", "rotated"])
def test_orientations(tmp_path, place):
    transform = {
        "south": Affine(0.2, 0, LEFT, 0, 0.2, TOP - 12),
        "rotated": PLACE @ Affine.rotation(-15),
    }[place]
    path = vectors(tmp_path / "a.gpkg", [shapely.Polygon(TRIANGLE)])
    columns, rows = np.meshgrid(np.arange(100) + 0.5, np.arange(60) + 0.5)
    x, y = transform @ (columns, rows)
    expected = shapely.contains_xy(shapely.Polygon(TRIANGLE), x, y)
    assert expected.sum() > 500
    found = whole_mask(of_file(path, grid(transform)))
    assert (found == expected).mean() > 0.999  # centres on an edge are on either side
    bounds = LEFT + 3, TOP - 9, LEFT + 8, TOP - 4
    expected = (x > bounds[0]) & (x < bounds[2]) & (y > bounds[1]) & (y < bounds[3])
    np.testing.assert_array_equal(whole_mask(within_bounds(bounds, grid(transform))), expected)


def test_bounds_at_borders_and_centres_of_pixels():
    for bounds, window in (
        ((LEFT, TOP - 12, LEFT + 20, TOP), (0, 0, 60, 100)),
        ((LEFT - 9, TOP - 99, LEFT + 99, TOP + 9), (0, 0, 60, 100)),
        ((LEFT + 0.2, TOP - 0.8, LEFT + 0.6, TOP - 0.6), (3, 1, 1, 2)),
        ((LEFT + 0.05, TOP - 0.75, LEFT + 0.55, TOP - 0.65), (3, 0, 1, 3)),
    ):
        area = within_bounds(bounds, grid())
        top, left, height, width = area.window
        assert area.window == window
        mask = whole_mask(area)
        assert mask.sum() == height * width
        assert mask[top : top + height, left : left + width].all()


def test_holes_several_parts_and_what_is_left_out(tmp_path):
    ring = shapely.box(LEFT, TOP - 10, LEFT + 10, TOP).difference(
        shapely.box(LEFT + 2, TOP - 8, LEFT + 8, TOP - 2)
    )
    parts = shapely.MultiPolygon([ring, shapely.box(LEFT + 12, TOP - 2, LEFT + 14, TOP)])
    features = [parts, None, shapely.Point(LEFT, TOP), shapely.Polygon()]
    area = of_file(vectors(tmp_path / "a.gpkg", features), grid())
    assert whole_mask(area).sum() == 50 * 50 - 30 * 30 + 10 * 10
    assert area.notes == (f"3 features of {tmp_path / 'a.gpkg'} have no polygon, and are left out",)


def test_invalid_polygons_are_repaired(tmp_path):
    """A bow tie, which has two triangles."""
    points = [(0, 0), (10, -10), (10, 0), (0, -10)]
    bow = shapely.Polygon([(LEFT + x, TOP + y) for x, y in points])
    area = of_file(vectors(tmp_path / "a.gpkg", [bow]), grid())
    assert area.notes == (
        f"1 of 1 polygons in {tmp_path / 'a.gpkg'} were invalid, and are repaired",
    )
    columns, rows = np.meshgrid(np.arange(50) + 0.5, np.arange(50) + 0.5)
    within = np.abs(columns - 25) > np.abs(rows - 25)
    ties = np.abs(columns - 25) == np.abs(rows - 25)
    mask = whole_mask(area)[:50, :50]
    np.testing.assert_array_equal(mask[~ties], within[~ties])


# Wrong uses.


def test_files_that_are_no_area(tmp_path):
    cases = {
        "points.gpkg": ([shapely.Point(LEFT + 1, TOP - 1)], "EPSG:2154", "has no polygons: it hol"),
        "nothing.gpkg": ([], "EPSG:2154", "is empty: it has no features"),
        "system.shp": ([shapely.Polygon(TRIANGLE)], None, "has no coordinate system: assign one"),
        "far.gpkg": ([shapely.box(0, 0, 9, 9)], "EPSG:2154", "does not touch a.tif, which spans"),
        "between.gpkg": (
            [shapely.box(LEFT + 0.11, TOP - 1, LEFT + 0.19, TOP)], "EPSG:2154", "does not touch",
        ),
    }  # fmt: skip
    for name, (geometries, crs, message) in cases.items():
        if geometries:
            vectors(tmp_path / name, geometries, crs)
        else:
            pyogrio.raw.write(
                tmp_path / name, np.array([], object), [], [], crs=crs, geometry_type="Polygon"
            )
        with pytest.raises(UserError, match=message) as error:
            of_file(tmp_path / name, grid())
        assert str(tmp_path / name) in str(error.value)
        assert isinstance(error.value, OutsideError) == (name in ("far.gpkg", "between.gpkg"))
    with pytest.raises(UserError, match=r"there is no file no.gpkg \(--aoi\)"):
        of_file("no.gpkg", grid())
    (tmp_path / "text.gpkg").write_text("no vectors")
    with pytest.raises(UserError, match=r"text.gpkg cannot be read as vectors \(--aoi\)"):
        of_file(tmp_path / "text.gpkg", grid())


def test_several_layers_of_polygons_are_ambiguous(tmp_path):
    path = vectors(tmp_path / "a.gpkg", [shapely.Point(LEFT, TOP)], layer="points")
    vectors(path, [shapely.Polygon(TRIANGLE)], layer="one", append=True)
    np.testing.assert_array_equal(whole_mask(of_file(path, grid())), expected_mask(TRIANGLE))
    vectors(path, [shapely.Polygon(TRIANGLE)], layer="two", append=True)
    with pytest.raises(UserError, match=r"several layers of polygons, one, two: give a file of o"):
        of_file(path, grid())


def test_rasters_on_which_nothing_can_be_placed(tmp_path):
    path = vectors(tmp_path / "a.gpkg", [shapely.Polygon(TRIANGLE)])
    bounds = LEFT, TOP - 5, LEFT + 5, TOP
    for place in (
        lambda raster: of_file(path, raster),
        lambda raster: within_bounds(bounds, raster),
    ):
        with pytest.raises(
            UserError, match=r"cannot be placed on a.tif, which has no geotransform"
        ):
            place(grid(Affine.identity(), None))
    with pytest.raises(UserError, match=r"a.tif has no coordinate system, so that --aoi="):
        of_file(path, grid(crs=None))
    assert within_bounds(bounds, grid(crs=None)).window == (0, 0, 25, 25)
    with pytest.raises(UserError, match=r"EPSG:2154, .* in LOCAL_CS.*, and GDAL cannot transform"):
        of_file(path, grid(crs='LOCAL_CS["site",UNIT["metre",1]]'))


def test_without_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(vector.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"--aoi needs pyogrio and shapely: pip install 'flair-jax\["
    ):
        of_file(tmp_path / "a.gpkg", grid())
    within_bounds((LEFT, TOP - 5, LEFT + 5, TOP), grid())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (5, 0, 1, 9)}, r"--bounds=5,0,1,9: expected LEFT,BOTTOM,RIGHT,TOP"),
        ({"bounds": (0, 0, 1)}, r"--bounds=0,0,1: expected LEFT,BOTTOM"),
        ({"bounds": (0, 0, 1, float("nan"))}, r"--bounds=0,0,1,nan: expected LEFT,BOTTOM"),
        ({"bounds": (0, 0, 1, 9)}, r"--bounds=0,0,1,9 is outside .*in.tif, which spans 900000, "),
        ({"bounds": (0, 0, 1, 9), "aoi": "a.gpkg"}, "give either --aoi=a.gpkg or --bounds"),
        ({"aoi": "no.gpkg"}, "there is no file no.gpkg"),
    ],
)
def test_options_that_are_no_area(tmp_path, model, options, message):
    path = write(tmp_path / "in.tif", noise(5))
    with pytest.raises(UserError, match=message):
        detecting.detect(model, path, tmp_path / "o.tif", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["in.tif"]


def test_coordinates_of_geojson_are_longitudes_first(tmp_path):
    x, y = transform_points("EPSG:2154", "EPSG:4326", *zip(*TRIANGLE, strict=True))
    ring = [list(p) for p in zip(x, y, strict=True)]
    polygon = {"type": "Polygon", "coordinates": [[*ring, ring[0]]]}
    (tmp_path / "a.geojson").write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": polygon})
    )
    found = whole_mask(of_file(tmp_path / "a.geojson", grid()))
    assert (found == expected_mask(TRIANGLE)).mean() > 0.999
