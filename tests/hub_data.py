"""A synthetic stand-in of FLAIR-HUB, in its names and layout, made of FLAIR #1's stand-in."""

import contextlib
import csv
import dataclasses
import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import rasterio

from flair_jax.data import synthetic

MODALITIES = ("AERIAL_RGBI", "DEM_ELEV", "AERIAL_LABEL-COSIA")
IMAGE, ELEVATION, MASK = MODALITIES
# COSIA's value of each of FLAIR #1's, 1 to 19, written down apart from the builder's table.
COSIA = dict(
    zip((1, 18, 13, 3, 2, 4, 5, 14, 10, 11, 12, 9, 7, 6, 8, 15, 17, 16, 19), range(19), strict=True)
)
SPLITS = {"train": "TRAIN", "val": "VALID", "test": "TEST"}


@dataclasses.dataclass
class Hub:
    """The stand-in.

    Attributes:
      root: its folder.
      flair: the folder of FLAIR #1's stand-in that it is made of.
      patch_ids: {split: `patch_id` of each patch}.
      number: FLAIR #1's number by `patch_id`.
    """

    root: Path
    flair: Path
    patch_ids: dict[str, list[str]]
    number: dict[str, str]

    def file(self, patch_id, modality):
        domain, region, cell = patch_id.split("_")
        folder = self.root / f"{domain}_{modality}" / region
        return folder / f"{domain}_{modality}_{region}_{cell}.tif"

    def csv(self, split):
        return self.root / f"FLAIR-HUB_{SPLITS[split]}.csv"

    @property
    def dates(self):
        return self.root / "GLOBAL_ALL_MTD" / "GLOBAL_AERIAL_MTD_DATES.gpkg"

    @property
    def metadata(self):
        return self.flair / synthetic.METADATA_FILE

    def write_list(self, split, patch_ids, header=True, delimiter=","):
        with self.csv(split).open("w", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            if header:
                writer.writerow(("patch_id", MASK, IMAGE, ELEVATION, "SENTINEL2_TS"))
            for patch_id in patch_ids:
                paths = [
                    f"../{self.file(patch_id, m).relative_to(self.root)}"
                    for m in (MASK, IMAGE, ELEVATION, "SENTINEL2_TS")
                ]
                writer.writerow((patch_id, *paths))


def make(root, flair, patch_size=64, train=12, val=4, test=4, source_of=synthetic.generate):
    """Makes FLAIR #1's stand-in in the folder `flair`, and FLAIR-HUB's of the same patches."""
    root, flair = Path(root), Path(flair)
    source_of(flair, patch_size=patch_size, train=train, val=val, test=test)
    entries = json.loads((flair / synthetic.METADATA_FILE).read_text())
    hub = Hub(root, flair, {split: [] for split in SPLITS}, {})
    dates = {}
    for image in sorted(flair.rglob("IMG_*.tif")):
        number = image.stem.removeprefix("IMG_")
        entry = entries[image.stem]
        mask = next(flair.rglob(f"MSK_{number}.tif"))
        domain = entry["domain"].replace("_", "-")
        region = f"{entry['zone'].split('_')[1]}-S1-{entry['zone'].split('_')[0][1:]}"
        patch_id = f"{domain}_{region}_{int(number)}-10"
        split = next(s for s, names in synthetic.DOMAINS.items() if entry["domain"] in names)
        hub.patch_ids[split].append(patch_id)
        hub.number[patch_id] = number
        dates[patch_id] = entry["date"].replace("-", "")
        with rasterio.open(image) as raster:
            bands, profile, tags = raster.read(), raster.profile, raster.tags()
        with rasterio.open(mask) as raster:
            values = raster.read()
        rng = np.random.default_rng(int(number))
        terrain = rng.uniform(0, 2000) + rng.uniform(0, 1, bands.shape[1:]).round(2)
        elevation = np.stack([terrain + bands[4] / 5, terrain]).astype(np.float32)
        cosia = np.array([255, *(COSIA[value] for value in range(1, 20))], np.uint8)
        for modality, pixels in zip(MODALITIES, (bands[:4], elevation, cosia[values]), strict=True):
            path = hub.file(patch_id, modality)
            path.parent.mkdir(parents=True, exist_ok=True)
            profile.update(count=len(pixels), dtype=pixels.dtype)
            with rasterio.open(path, "w", **profile) as raster:
                raster.write(pixels)
                raster.update_tags(SYNTHETIC=tags["SYNTHETIC"])
    for split, patch_ids in hub.patch_ids.items():
        hub.write_list(split, patch_ids)
    write_dates(hub.dates, dates)
    return hub


def write_dates(path, dates, table="global_aerial_mtd_dates", columns=("patch_id", "date")):
    """Writes a GeoPackage of points with its standard tables."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    key, date = columns
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(f"""
            PRAGMA application_id = 0x47504B47;
            PRAGMA user_version = 10200;
            CREATE TABLE gpkg_spatial_ref_sys (srs_name TEXT, srs_id INTEGER PRIMARY KEY,
                organization TEXT, organization_coordsys_id INTEGER, definition TEXT,
                description TEXT);
            CREATE TABLE gpkg_contents (table_name TEXT PRIMARY KEY, data_type TEXT,
                identifier TEXT UNIQUE, description TEXT, last_change DATETIME, min_x DOUBLE,
                min_y DOUBLE, max_x DOUBLE, max_y DOUBLE, srs_id INTEGER);
            CREATE TABLE gpkg_geometry_columns (table_name TEXT, column_name TEXT,
                geometry_type_name TEXT, srs_id INTEGER, z TINYINT, m TINYINT);
            INSERT INTO gpkg_spatial_ref_sys VALUES ('RGF93', 2154, 'EPSG', 2154, '', '');
            INSERT INTO gpkg_contents (table_name, data_type, identifier, srs_id)
                VALUES ('{table}', 'features', '{table}', 2154);
            INSERT INTO gpkg_geometry_columns VALUES ('{table}', 'geom', 'POINT', 2154, 0, 0);
            CREATE TABLE "{table}" (fid INTEGER PRIMARY KEY, geom BLOB, {key} TEXT, {date} TEXT);
        """)
        connection.executemany(
            f'INSERT INTO "{table}" ({key}, {date}) VALUES (?, ?)', list(dates.items())
        )


def zipped(hub, root, only=lambda name: True):
    """Copies the stand-in with a zip in place of each folder, the others as they are."""
    shutil.copytree(hub.root, root)
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if only(folder.name):
            shutil.make_archive(str(folder), "zip", root, folder.name)
            shutil.rmtree(folder)
    return dataclasses.replace(hub, root=root)
