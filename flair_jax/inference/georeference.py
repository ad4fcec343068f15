"""Georeferencing of a raster: coordinate system, geotransform, ground control points, RPCs."""

import dataclasses
import re
import shlex
from typing import Any, Protocol
from xml.etree import ElementTree as xml

import numpy as np
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.rpc import RPC
from rasterio.transform import Affine, from_gcps
from rasterio.warp import transform as transform_points

from flair_jax.errors import UserError

_WGS84_RADIUS, _WGS84_E2 = 6_378_137.0, 0.006_694_379_990_14  # semi-major axis, eccentricity^2
# Projections of the whole world: away from the equator their units are far from metres. Those made
# for a region are taken as they are: their scale error is not worth a resampling.
_WORLD = re.compile(
    r'PROJECTION\["(?!.*(Transverse|Oblique|Hotine))[^"]*(Mercator|Equirectangular|Equidistant_Cyl|'
    r"Plate_Carree|Cylindrical_Equal_Area|Miller|Gall|Robinson|Mollweide|Sinusoidal|Eckert|Winkel|"
    r"VanDerGrinten|Goode|Aitoff|Natural_Earth|Equal_Earth)"
)
_SAMPLED_PATCHES = 16
_SAME = 1.1  # ratio up to which pixel sizes are the same
# Metres of a pixel's side. Outside, the georeferencing is degenerate: control points on a line,
# latitudes beyond the pole.
_SMALLEST, _LARGEST = 1e-6, 1e6
_STEP = 10.0  # units of the coordinate system, for derivatives


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Where a raster lies on the ground.

    Attributes:
        crs: coordinate system of `transform`, or None.
        transform: from (column, row) to `crs`; the identity if unknown.
        gcps: ground control points, of a raster without geotransform.
        gcps_crs: their coordinate system.
        rpcs: rational polynomial coefficients, or None.
    """

    crs: CRS | None
    transform: Affine
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None

    @classmethod
    def of(cls, raster: rasterio.DatasetReader) -> "Georeference":
        """The georeferencing of an open raster.

        Raises:
            UserError: it is given by arrays of coordinates, which a GeoTIFF cannot hold.
        """
        gcps, gcps_crs = raster.gcps
        if raster.transform != Affine.identity():  # GDAL prefers it to control points, too
            gcps, gcps_crs = [], None
        elif not gcps and raster.rpcs is None and raster.tags(ns="GEOLOCATION"):
            raise UserError(
                f"{raster.name} is georeferenced by arrays of coordinates, which the map could not "
                "keep: warp it first, such as\n  gdalwarp -geoloc -t_srs EPSG:CODE -r bilinear "
                f"{shlex.quote(raster.name)} warped.tif"
            )
        return cls(raster.crs, raster.transform, tuple(gcps), gcps_crs, raster.rpcs)

    @property
    def has_transform(self) -> bool:
        """Whether there is a geotransform or a coordinate system."""
        return self.crs is not None or self.transform != Affine.identity()

    @property
    def is_invertible(self) -> bool:
        """Whether each position on the ground has one pixel."""
        area = abs(self.transform.determinant)
        return bool(0 < area < np.inf)

    @property
    def description(self) -> str:
        """What is known, in a few words."""
        if self.gcps:
            return f"{len(self.gcps)} ground control points in {short_name(self.gcps_crs)}"
        if self.rpcs is not None and not self.has_transform:
            return "RPCs"
        return short_name(self.crs)

    def pixel_size(self, column: float, row: float) -> tuple[float, float] | None:
        """Ground sample distance along the row and along the column, in metres, at a pixel.

        Coordinates without a coordinate system are taken as metres.

        Args:
            column, row: position in pixels.

        Returns:
            (x, y), or None if unknown.
        """
        columns = self._pixel_vectors(np.array([column], float), np.array([row], float))
        if columns is None:
            return None
        x, y = np.hypot(*columns[0, :, 0]), np.hypot(*columns[0, :, 1])
        plausible = all(_SMALLEST < side < _LARGEST for side in (x, y))
        return (float(x), float(y)) if plausible else None

    def pixel_area(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """Ground area, in square metres, of the pixels at some positions (N,); None if unknown.

        It is that on the WGS 84 ellipsoid, whatever the projection; coordinates without a
        coordinate system are taken as metres.
        """
        vectors = self._pixel_vectors(columns.astype(float), rows.astype(float), exact=True)
        if vectors is None or not np.isfinite(vectors).all():
            return None
        areas = np.abs(np.linalg.det(vectors))
        return areas if areas.min() > _SMALLEST**2 and areas.max() < _LARGEST**2 else None

    def degrees(self, columns: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """Longitude and latitude, (2, N) in degrees, of positions in pixels; None if unknown."""
        if self.crs is None:
            return None
        x, y = self.transform @ (columns, rows)
        if self.crs.is_geographic:
            return np.degrees(np.stack([x, y]) * self.crs.units_factor[1])
        try:
            return np.array(transform_points(self.crs, "EPSG:4326", x, y))
        except rasterio.errors.RasterioError:
            return None

    def cropped(self, left: int, top: int) -> "Georeference":
        """Of the raster that begins at a pixel; without GCPs and RPCs."""
        return Georeference(self.crs, self.transform @ Affine.translation(left, top))

    def resampled(self, x: float, y: float) -> "Georeference":
        """Of the raster whose pixels are larger by the factors `x` and `y`."""
        transform = self.transform
        if self.has_transform:
            transform = transform @ Affine.scale(x, y)
        gcps = tuple(
            GroundControlPoint(p.row / y, p.col / x, p.x, p.y, p.z, p.id, p.info) for p in self.gcps
        )
        rpcs = self.rpcs
        if rpcs is not None:
            # GDAL's RPC coordinates refer to pixel centres.
            terms = rpcs.to_dict()
            terms["line_off"] = (terms["line_off"] + 0.5) / y - 0.5
            terms["samp_off"] = (terms["samp_off"] + 0.5) / x - 0.5
            terms["line_scale"] /= y
            terms["samp_scale"] /= x
            rpcs = RPC(**terms)
        return Georeference(self.crs, transform, gcps, self.gcps_crs, rpcs)

    def add_to_vrt(self, root: xml.Element) -> None:
        """Adds the elements that describe it to a `VRTDataset`."""
        if self.crs is not None:
            xml.SubElement(root, "SRS").text = self.crs.to_wkt()
        if self.transform != Affine.identity():
            coefficients = ", ".join(map(repr, self.transform.to_gdal()))
            xml.SubElement(root, "GeoTransform").text = coefficients
        if self.gcps:
            projection = "" if self.gcps_crs is None else self.gcps_crs.to_wkt()
            points = xml.SubElement(root, "GCPList", Projection=projection)
            for number, point in enumerate(self.gcps, 1):
                xml.SubElement(
                    points, "GCP", Id=point.id or str(number), Info=point.info or "",
                    Pixel=repr(point.col), Line=repr(point.row),
                    X=repr(point.x), Y=repr(point.y), Z=repr(point.z or 0.0),
                )  # fmt: skip
        if self.rpcs is not None:
            domain = xml.SubElement(root, "Metadata", domain="RPC")
            for key, value in self.rpcs.to_gdal().items():
                xml.SubElement(domain, "MDI", key=key).text = value

    def _pixel_vectors(
        self, columns: np.ndarray, rows: np.ndarray, exact: bool = False
    ) -> np.ndarray | None:
        """(N, 2, 2): the steps of one column and of one row, in metres east and north.

        Unless `exact`, the units of projections made for a region are taken as they are.
        """
        crs, transform = self.crs, self.transform
        if self.gcps:
            if len(self.gcps) < 3:
                return None
            crs = self.gcps_crs
            try:
                transform = from_gcps(self.gcps)
            except ValueError:
                return None
        if transform == Affine.identity():
            return None
        x, y = transform @ (columns, rows)
        linear = np.array([[transform.a, transform.b], [transform.d, transform.e]])
        return _metres_per_unit(crs, x, y, exact) @ linear


class Records(Protocol):
    """Patches of a data set, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...


def common_pixel_size(records: Records) -> float:
    """The ground sample distance of the patches of a data set, in metres.

    Args:
        records: patches with "image" (H, W, bands), "transform" (6,) and "crs", of which some are
            read.

    Returns:
        Their median; 0 if it is unknown or not the same for all.
    """
    sizes: list[float] = []
    for index in np.unique(np.linspace(0, len(records) - 1, _SAMPLED_PATCHES).astype(int)):
        record = records[int(index)]
        crs = record["crs"].decode() if isinstance(record["crs"], bytes) else str(record["crs"])
        height, width = record["image"].shape[:2]
        try:
            georeference = Georeference(
                CRS.from_user_input(crs) if crs else None, Affine(*record["transform"])
            )
            size = georeference.pixel_size(width / 2, height / 2)
        except rasterio.errors.CRSError:
            return 0.0
        if size is None:
            return 0.0
        sizes += size
    return round(float(np.median(sizes)), 4) if max(sizes) < _SAME * min(sizes) else 0.0


def _metres_per_unit(crs: CRS | None, x: np.ndarray, y: np.ndarray, exact: bool) -> np.ndarray:
    """(N, 2, 2): metres east and north on the ground for each unit along x and along y."""
    count = len(x)
    if crs is None:
        return np.broadcast_to(np.eye(2), (count, 2, 2))
    unit = crs.units_factor[1]
    if crs.is_geographic:
        # x is the longitude whatever the order of axes of the CRS, as everywhere in rasterio.
        scales = np.stack(_metres_per_radian(y * unit), -1) * unit
        return scales[:, :, None] * np.eye(2)
    nominal = np.broadcast_to(unit * np.eye(2), (count, 2, 2))
    if not crs.is_projected or not (exact or _WORLD.search(crs.to_wkt())):
        return nominal
    step = _STEP / unit
    ends_x = np.concatenate([x - step, x + step, x, x])
    ends_y = np.concatenate([y, y, y - step, y + step])
    try:
        degrees = np.radians(transform_points(crs, "EPSG:4326", ends_x, ends_y))
    except rasterio.errors.RasterioError:
        return nominal
    longitude, latitude = degrees.reshape(2, 2, 2, count)  # coordinate, axis, end, point
    east, north = _metres_per_radian(latitude.mean(1))
    turns = np.angle(np.exp(1j * (longitude[:, 1] - longitude[:, 0])))  # across the antimeridian
    actual = np.stack([turns * east, (latitude[:, 1] - latitude[:, 0]) * north]) / (2 * step)
    actual = np.moveaxis(actual, -1, 0)  # (N, coordinate, axis)
    return np.where(np.isfinite(actual).all((1, 2), keepdims=True), actual, nominal)


def _metres_per_radian(latitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Metres east and north on the WGS 84 ellipsoid per radian of longitude and of latitude."""
    latitude = np.clip(latitude, -np.pi / 2, np.pi / 2)
    w = np.sqrt(1 - _WGS84_E2 * np.sin(latitude) ** 2)
    east = _WGS84_RADIUS / w * np.cos(latitude)
    north = _WGS84_RADIUS * (1 - _WGS84_E2) / w**3
    return east, north


def short_name(crs: CRS | None) -> str:
    """A coordinate system in at most 60 characters."""
    return "no coordinate system" if crs is None else crs.to_string()[:60]
