"""Description of a built data set: its bands and classes, as its metadata.json states them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flair_jax.data.bands import BANDS
from flair_jax.data.nomenclature import FULL, LandCover, Nomenclature
from tfds_builder.flair.reference import NAME as FLAIR_NAME
from tfds_builder.flair.reference import NAME_2 as FLAIR_2_NAME


@dataclasses.dataclass(frozen=True)
class DataDescription:
    """The bands and classes of a data set.

    Attributes:
        name: of the data set.
        bands: names of the bands of its images, in their order.
        nomenclature: its classes with the mask values that stand for each; none of a data set
            without masks.
        synthetic: whether it is generated, not real.
        grouped_by: what the `domain` of a patch is: "domain" as in FLAIR, or "group".
        has_crs: whether the unit of its coordinates is known.
        stretch: (lowest, highest) value of each band in the source images, which became 0 and 255;
            empty where they are uint8 as they were.
        image_types: the types of the source images' pixels, as far as they are known.
    """

    name: str
    bands: tuple[str, ...]
    nomenclature: Nomenclature
    synthetic: bool = False
    grouped_by: str = "domain"
    has_crs: bool = True
    stretch: tuple[tuple[float, float], ...] = ()
    image_types: tuple[str, ...] = ("uint8",)

    @property
    def is_flairs(self) -> bool:
        """Whether it is FLAIR #1 or #2, with FLAIR's metadata."""
        return self.name in (FLAIR_NAME, FLAIR_2_NAME)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> "DataDescription":
        """Reads the content of metadata.json; version 1.0.0 of FLAIR's states nothing.

        Raises:
            ValueError: it states something else.
        """
        if not {"bands", "classes"} & metadata.keys():
            return FLAIR_DATA
        name = str(metadata.get("name", FLAIR_NAME))
        try:
            bands = tuple(map(str, metadata["bands"]))
            stretch = metadata.get("stretch") or {}
            classes: dict[str, LandCover] = {}
            for entry in metadata["classes"]:
                same = classes.get(entry["name"])
                classes[entry["name"]] = LandCover(
                    entry["name"],
                    same.colour if same else entry["colour"],
                    float(entry.get("weight", 1.0)),
                    (*(same.values if same else ()), int(entry["value"])),
                )
            return cls(
                name=name,
                bands=bands,
                nomenclature=Nomenclature(name, tuple(classes.values())),
                synthetic=bool(metadata.get("synthetic", False)),
                grouped_by=str(metadata.get("grouped_by", "domain")),
                has_crs="none" not in metadata.get("crs", ()),
                stretch=tuple((float(a), float(b)) for a, b in (stretch[n] for n in bands))
                if stretch
                else (),
                image_types=tuple(
                    map(str, metadata.get("image_types", () if stretch else ("uint8",)))
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"it does not describe bands and classes: {error!r}") from error


FLAIR_DATA = DataDescription(FLAIR_NAME, BANDS, FULL)
