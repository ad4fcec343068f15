"""The stored form of a patch: its features in TFDS, and how a record is written and parsed."""

import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer

from tfds_builder.flair.reference import BANDS, CLASSES

# Index: mask value.
CLASS_NAMES = ["no mask", *(name for name, _ in CLASSES.values())]
_TEXTS = ("id", "domain", "zone", "date", "time", "camera", "crs")
_NUMBERS = ("centroid", "transform")
FIELDS = frozenset({"image", "mask", "has_mask", *_TEXTS, *_NUMBERS})
_PNG_HEADER = 43  # bytes before the first row: signature, IHDR, and the beginning of IDAT
_PNG_TRAILER = 20  # bytes after the last row: checksums of zlib and of IDAT, and IEND
_ROW_HEADER = 6  # bytes before the pixels of a row: 5 of the deflate block, 1 of the PNG filter


def features(
    size: tuple[int, int] | None,
    bands: Sequence[str] = BANDS,
    labels: Sequence[str] | int = CLASS_NAMES,
) -> tfds.features.FeaturesDict:
    """Returns the features of a patch; texts are empty where something is not known.

    Args:
      size: rows and columns of all patches; None where it is not known yet.
      bands: names of the image's bands.
      labels: the meaning of each mask value, or how many values there are.
    """
    rows, columns = size or (None, None)
    flairs = tuple(bands) == BANDS and labels is CLASS_NAMES
    text, tensor, doc = tfds.features.Text, tfds.features.Tensor, tfds.features.Documentation
    # Without an encoding uint8 is stored as int64, and float64 as float32, which is too coarse
    # for coordinates.
    return tfds.features.FeaturesDict(
        {
            "image": tensor(
                shape=(rows, columns, len(bands)),
                dtype=np.uint8,
                encoding="bytes",
                doc=doc(
                    desc=f"{', '.join(bands)}: digital numbers"
                    + ("; height above ground in steps of 0.2 m, clipped at 255" if flairs else "")
                ),
            ),
            "mask": tfds.features.LabeledImage(
                shape=(rows, columns, 1),
                labels=labels,
                encoding_format="png",
                doc=doc(
                    desc="land cover; all 0 where there is no mask, see has_mask",
                    value_range=f"1 to {max(CLASSES)}" if flairs else "see metadata.json",
                ),
            ),
            "has_mask": tfds.features.Scalar(
                np.bool_, doc="whether there is a mask; some test patches have none"
            ),
            "id": text(doc="number in the file name, 000717"),
            "domain": text(doc="departement and year, D004_2021"),
            "zone": text(doc="area in the domain, Z8_NF"),
            "date": text(doc="of acquisition, 2021-05-28"),
            "time": text(doc="of acquisition, 08h06"),
            "camera": text(doc="UCE-M3-f120-s07"),
            "centroid": tensor(
                shape=(3,),
                dtype=np.float64,
                encoding="bytes",
                doc="x, y (Lambert-93) and z of the patch's centre in metres",
            ),
            "transform": tensor(
                shape=(6,),
                dtype=np.float64,
                encoding="bytes",
                doc="a, b, c, d, e, f: x = a column + b row + c, y = d column + e row + f",
            ),
            "crs": text(doc="EPSG:<code> or WKT of the transform; empty if the image has none"),
        }
    )


class Serializer:
    """Makes records of examples."""

    def __init__(
        self,
        size: tuple[int, int] | None,
        bands: Sequence[str] = BANDS,
        labels: Sequence[str] | int = CLASS_NAMES,
    ) -> None:
        self._features = features(size, bands, labels)
        self._serializer = example_serializer.ExampleSerializer(
            self._features.get_serialized_info()
        )

    def __call__(self, example: dict[str, Any]) -> bytes:
        """Returns the record of an example, whose mask is rows x columns uint8."""
        encoded = self._features.encode_example(example | {"mask": stored_png(example["mask"])})
        # Or else the order of the fields, and so the file, would differ from run to run.
        return self._serializer.get_tf_example(encoded).SerializeToString(deterministic=True)


def stored_png(mask: np.ndarray) -> bytes:
    """Returns a PNG file without compression: each row is a stored block of its zlib stream.

    Any PNG decoder reads it, and `parse` takes the pixels as they are: decoding a compressed mask
    would take as long as reading the rest of the record.

    Args:
      mask: (rows, columns) uint8, at most 65,534 columns.
    """
    rows, columns = mask.shape
    length = columns + 1
    lines = np.zeros((rows, _ROW_HEADER + columns), np.uint8)
    lines[:, 1:5] = np.frombuffer(struct.pack("<HH", length, length ^ 0xFFFF), np.uint8)
    lines[-1, 0] = 1  # the last block
    lines[:, _ROW_HEADER:] = mask
    checksum = zlib.adler32(lines[:, _ROW_HEADER - 1 :].tobytes())
    stream = b"\x78\x01" + lines.tobytes() + struct.pack(">I", checksum)
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    chunks = (_chunk(b"IHDR", header), _chunk(b"IDAT", stream), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def parse(record: bytes, size: tuple[int, int], bands: int = len(BANDS)) -> dict[str, Any]:
    """Returns the example of a record, without copying image and mask.

    The same as TFDS's `deserialize_example_np`, at a fraction of its time.

    Args:
      record: as made by `Serializer`.
      size: rows and columns.
      bands: of the image.

    Returns:
      `image` (rows, columns, bands) uint8 and `mask` (rows, columns) uint8, both read-only;
      `has_mask` bool; `centroid` (3,) and `transform` (6,) float64; the other features as bytes.

    Raises:
      ValueError: if it is not such a record.
    """
    try:
        return _parse(record, size, bands)
    except (IndexError, KeyError) as error:
        raise ValueError(f"not a record of this data set: {error!r}") from error


def _parse(record: bytes, size: tuple[int, int], bands: int) -> dict[str, Any]:
    rows, columns = size
    # tf.train.Example: one field of Features, whose fields are the entries of a map.
    ((start, end),) = _fields(record, 0, len(record))
    at = {}
    for entry_start, entry_end in _fields(record, start, end):
        (key_start, key_end), feature = _fields(record, entry_start, entry_end)
        ((list_start, list_end),) = _fields(record, *feature)  # of bytes or of integers
        ((at[record[key_start:key_end].decode()]),) = _fields(record, list_start, list_end)
    example: dict[str, Any] = {name: record[slice(*at[name])] for name in _TEXTS}
    for name in _NUMBERS:
        example[name] = np.frombuffer(record[slice(*at[name])], np.float64)
    example["has_mask"] = record[at["has_mask"][0]] != 0
    start, end = at["image"]
    shape = (rows, columns, bands)
    example["image"] = np.frombuffer(record, np.uint8, end - start, start).reshape(shape)
    start, end = at["mask"]
    row = _ROW_HEADER + columns
    if end - start != _PNG_HEADER + rows * row + _PNG_TRAILER:
        raise ValueError("not a record of this data set: its mask is not as stored by it")
    lines = np.frombuffer(record, np.uint8, rows * row, start + _PNG_HEADER).reshape(rows, row)
    example["mask"] = lines[:, _ROW_HEADER:]
    return example


def _fields(record: bytes, position: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the length-delimited fields of a protobuf message begin and end."""
    while position < end:
        if record[position] & 0x07 != 2 or record[position] > 0x7F:
            raise ValueError("not a record of this data set: unknown field")
        position += 1
        length = shift = 0
        while True:  # a varint: 7 bits a byte, the lowest first
            byte = record[position]
            position += 1
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        yield position, position + length
        position += length
