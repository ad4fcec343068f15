"""Names of bands by description: one reading for the builder and for the detection."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.enums import ColorInterp

from flair_jax.errors import UserError
from flair_jax.inference.band_selection import BandLayout, select_bands
from tfds_builder import bands
from tfds_builder.own.rasters import ImageHeader, band_names


@pytest.mark.parametrize(
    ("description", "name"),
    [
        ("Blue band", "blue"),
        ("Band 3: Blue", "blue"),
        ("B4 (red)", "red"),
        ("Near-Infrared", "nir"),
        ("near_infrared", "nir"),
        ("proche infrarouge", "nir"),
        ("vert", "green"),
        ("Red Edge 1", "red_edge_1"),
        ("Blue light", "blue_light"),
        ("Soil moisture (%)", "soil_moisture"),
        ("B2", "b2"),
        ("-", ""),
        ("", ""),
    ],
)
def test_names(description, name):
    assert bands.name_of(description) == name


DESCRIPTIONS = st.one_of(
    st.sampled_from(
        [
            "", "Blue band", "blue", "Red", "rot", "B3 (green)", "NIR", "near infrared", "nir1",
            "Red Edge 1", "Red Edge 2", "SWIR 1", "coastal blue", "Blue light", "height", "Alpha",
            "mask", "Band 1", "1", "-", "_", "(r)", "b", "ndvi", "other_ir", "Soil moisture",
        ]
    ),
    st.text(max_size=8),
)  # fmt: skip
COLOURS = st.sampled_from(
    [
        ColorInterp[name]
        for name in ("undefined", "gray", "red", "green", "blue", "nir", "yellow", "alpha")
    ]
)


@given(DESCRIPTIONS)
def test_a_name_is_its_own_name(description):
    name = bands.name_of(description)
    assert bands.name_of(name) == name


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(DESCRIPTIONS, COLOURS), min_size=1, max_size=5))
def test_a_model_finds_the_bands_that_it_was_trained_on(described):
    """In a file as those of the data set: in the same order, or it is asked for."""
    texts = tuple(text.strip().lower() for text, _ in described)
    colours = tuple(colour for _, colour in described)
    names = band_names(ImageHeader(None, texts, colours, False))
    if isinstance(names, str) or "alpha" in names:
        return  # the builder asks for names; or the band is transparency
    layout = BandLayout(texts, colours, ("uint8",) * len(texts), (8,) * len(texts))
    rng = np.random.default_rng(0)
    try:
        found = select_bands(
            "a.tif", layout, names, (), lambda numbers: rng.integers(0, 256, (500, len(numbers)))
        )
    except UserError as error:
        assert "--bands=" in str(error)  # noqa: PT017
        # It may ask only where what a band is called and what colour it has are at odds.
        assert any(bands.mentioned(text) - {name} for text, name in zip(texts, names, strict=True))
        return
    assert found.numbers == tuple(range(1, len(names) + 1))
