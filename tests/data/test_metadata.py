import numpy as np
import pytest
from golden_arrays import golden

from flair_jax.data import metadata
from flair_jax.errors import UserError

# Entries of the toy data set's metadata: x, y, z, date, time, camera.
PATCHES = {
    "IMG_000717": (924009.6, 6339451.2, 1661.9399414062, "2021-05-28", "08h06", "UCE-M3-f120-s07"),
    "IMG_002126": (1037363.2, 6298572.8, 17.75, "2020-07-09", "09h17", "UCE-M3-f120-s06"),
    "IMG_003895": (777676.8, 6385203.2, 925.700012207, "2020-07-04", "13h57", "CAMERA#034"),
    "IMG_005339": (828470.4, 7004641.6, 117.7799987793, "2019-06-29", "13h53", "CAMERA#030"),
    "IMG_015082": (380265.6, 6571796.8, 4.2899999619, "2018-04-19", "09h23", "CAMERA#017"),
    "IMG_063120": (716544.0, 6327961.6, 839.3200073242, "2019-08-14", "14h19", "UCE-M3-f100"),
    "IMG_024602": (374425.6, 6484428.8, -1.7000000477, "2021-08-27", "12h57", "UCE-M3-f120-s08"),
}


@pytest.mark.parametrize("name", PATCHES)
def test_encoding_is_the_references(name):
    arrays = golden("metadata_encoding")
    expected = arrays["encoding"][list(arrays["names"]).index(name)]
    *centroid, date, time, camera = PATCHES[name]
    np.testing.assert_allclose(
        metadata.encode_reference(centroid, date, time, camera), expected, rtol=0, atol=1e-9
    )


def test_positions_of_the_numbers():
    code = metadata.encode_reference(
        (0, 0, metadata.HIGHEST_ALTITUDE), "2019-07-31", "12h00", "UCE-M3"
    )
    assert code.shape == (45,)
    assert code[:32].tolist() == [0, 1] * 16
    assert code[32:39].tolist() == [1, 1, 0, 0, 1, 0, 0]  # altitude, camera, year
    assert code[41:43] == pytest.approx([0.5, 1])  # the 31st closes the circle
    assert code[43:] == pytest.approx([0.5, 0])  # noon


def test_year_out_of_range():
    with pytest.raises(UserError, match=r"2018 to 2021, and a patch is dated 2023-06-01"):
        metadata.encode_reference((0, 0, 0), "2023-06-01", "12h00", "UCE")


def corrected(x=7e5, y=66e5, z=0.0, date="2020-06-01", time="12h00", camera="UCE"):
    return metadata.encode("corrected", (x, y, z), date, time, camera)


def distance(a, b):
    return np.linalg.norm(a - b)


def test_corrected_position_tells_near_from_far():
    here = corrected()
    steps = [distance(corrected(x=7e5 + d), here) for d in (100, 2_500, 10_000, 100_000, 900_000)]
    assert steps[0] < 0.1 < 0.5 < min(steps[1:])  # 2.5 km is a quarter of the shortest wave
    grid = [
        corrected(x, y)[:32] for x in np.arange(1e5, 12e5, 1e5) for y in np.arange(60e5, 72e5, 1e5)
    ]
    nearest = [min(distance(a, b) for b in grid if b is not a) for a in grid]
    assert min(nearest) > 0.1  # all over France no two locations share a code


def test_corrected_season_closes_over_the_year():
    def season(date):
        return corrected(date=date)[36:38]

    assert distance(season("2019-12-31"), season("2020-01-01")) < 0.05
    assert distance(season("2020-01-15"), season("2020-07-15")) == pytest.approx(2, abs=0.01)
    assert distance(season("2020-05-01"), season("2020-06-01")) > 0.4  # 0 in the reference


def test_corrected_takes_any_year_and_keeps_the_rest():
    code = corrected(z=1500, date="2035-06-01", time="18h00", camera="CAMERA#24")
    assert code.shape == (metadata.SIZES["corrected"],) == (40,)
    assert code[32:36] == pytest.approx([1.5, 0, 1, 1.5])
    assert code[38:] == pytest.approx([-1, 0], abs=1e-12)
    assert np.abs(code).max() < 3
