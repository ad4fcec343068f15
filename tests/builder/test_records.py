import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tfds_builder.flair.records import CLASS_NAMES, Serializer, features, parse, stored_png

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


def example(size, text="", has_mask=True, seed=0):
    rng = np.random.default_rng(seed)
    names = ("id", "domain", "zone", "date", "time", "camera", "crs")
    return {
        "image": rng.integers(0, 256, (*size, 5), np.uint8),
        "mask": rng.integers(0, 20, size, np.uint8),
        "has_mask": has_mask,
        "centroid": rng.standard_normal(3),
        "transform": rng.standard_normal(6),
        **{name: f"{i}{text}" if text else "" for i, name in enumerate(names)},
    }


@given(sizes, texts, st.booleans(), st.integers(0, 99))
def test_parsing_gives_what_was_stored_and_what_tfds_gives(size, text, has_mask, seed):
    stored = example(size, text, has_mask, seed)
    record = Serializer(size)(stored)
    parsed = parse(record, size)
    by_tfds = features(size).deserialize_example_np(record)
    assert parsed.keys() == by_tfds.keys() == stored.keys()
    for name, value in stored.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(parsed[name], value)
            np.testing.assert_array_equal(by_tfds[name].reshape(value.shape), value)
            assert parsed[name].dtype == value.dtype
            assert not parsed[name].flags.writeable
        elif isinstance(value, str):
            assert parsed[name] == by_tfds[name] == value.encode()
        else:
            assert parsed[name] is by_tfds[name] is value


@given(sizes)
def test_a_stored_mask_is_a_png(size):
    mask = example(size)["mask"]
    with Image.open(io.BytesIO(stored_png(mask))) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", size[::-1])
        image.verify()
    with Image.open(io.BytesIO(stored_png(mask))) as image:
        np.testing.assert_array_equal(np.asarray(image), mask)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record(content):
    with pytest.raises(ValueError):  # noqa: PT011 - of many messages
        parse(content, (4, 4))


@given(st.data())
def test_a_damaged_record_is_never_an_error_of_another_kind(data):
    record = bytearray(Serializer((4, 6))(example((4, 6), "text")))
    for _ in range(data.draw(st.integers(1, 3))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse(bytes(record), (4, 6))
    except ValueError:
        return
    assert parsed["image"].shape == (4, 6, 5)
    assert parsed["mask"].shape == (4, 6)


def test_a_record_of_another_size():
    record = Serializer((4, 6))(example((4, 6)))
    for size in ((4, 5), (6, 4), (8, 8), (2, 12)):
        with pytest.raises(ValueError):  # noqa: PT011 - of many messages
            parse(record, size)


def test_features_name_shapes_and_classes():
    of_patch = features((512, 512))
    assert of_patch["image"].shape == (512, 512, 5)
    assert of_patch["mask"].shape == (512, 512, 1)
    assert of_patch["mask"].names == CLASS_NAMES
    assert (CLASS_NAMES[0], CLASS_NAMES[1], CLASS_NAMES[19]) == ("no mask", "building", "other")
    assert features(None)["image"].shape == (None, None, 5)
