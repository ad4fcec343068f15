"""Reads TensorBoard's event files without TensorBoard."""

import struct

from tensorboardX.proto.event_pb2 import Event


def events(folder):
    """Every event of a folder's files, in order of the files' names."""
    for path in sorted(folder.glob("events.*")):
        data, place = path.read_bytes(), 0
        while place < len(data):
            (length,) = struct.unpack_from("<Q", data, place)
            yield Event.FromString(data[place + 12 : place + 12 + length])
            place += 12 + length + 4  # length and its checksum before, a checksum after


def images(folder):
    """(step, tag) -> PNG bytes."""
    return {
        (event.step, value.tag): value.image.encoded_image_string
        for event in events(folder)
        for value in event.summary.value
        if value.HasField("image")
    }
