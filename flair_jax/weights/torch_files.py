"""Reading of PyTorch weight files (.safetensors, .pth, .pt, .bin, .ckpt) without PyTorch.

A pickled file can name any function to call. Here nothing of it is called: tensors are described,
and every other object becomes an empty placeholder, so that a checkpoint may hold a Namespace, a
path or a scheduler beside its weights.
"""

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, ClassVar, NamedTuple

import ml_dtypes
import numpy as np

from flair_jax.errors import UserError
from flair_jax.weights import hugging_face

# PyTorch's classes of storages, its dtypes, and safetensors' names of the same.
_DTYPES = {
    name: np.dtype(dtype)
    for names, dtype in (
        ("DoubleStorage float64 F64", np.float64),
        ("FloatStorage float32 F32", np.float32),
        ("HalfStorage float16 F16", np.float16),
        ("BFloat16Storage bfloat16 BF16", ml_dtypes.bfloat16),
        ("LongStorage int64 I64", np.int64),
        ("IntStorage int32 I32", np.int32),
        ("ShortStorage int16 I16", np.int16),
        ("CharStorage int8 I8", np.int8),
        ("ByteStorage uint8 U8", np.uint8),
        ("BoolStorage bool BOOL", np.bool_),
        ("uint16 U16", np.uint16),
        ("uint32 U32", np.uint32),
        ("uint64 U64", np.uint64),
        ("ComplexFloatStorage complex64 C64", np.complex64),
        ("ComplexDoubleStorage complex128", np.complex128),
        ("float8_e4m3fn F8_E4M3", ml_dtypes.float8_e4m3fn),
        ("float8_e5m2 F8_E5M2", ml_dtypes.float8_e5m2),
    )
    for name in names.split()
}
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of PyTorch before 1.6
_LEGACY = pickle.dumps(_MAGIC, protocol=2)
_DEPTH = 4  # of dictionaries in dictionaries in which a state dict is looked for
_NAMED = 4  # entries that a message names
_SAVE = "save the state dict of the model, torch.save(model.state_dict(), ...)"


class NotWeightsError(Exception):
    """The content of a file is no state dict; the message is the end of "FILE ..."."""


def read(path: str) -> dict[str, np.ndarray]:
    """Reads a file of PyTorch weights; its content, not its name, tells what it is.

    Args:
        path: a file of safetensors; a file of `torch.save` with a state dict or, in dictionaries,
            one state dict, as Lightning's checkpoints are; or
            `hf://organisation/repository/file` of the Hugging Face hub, see `hugging_face`.

    Returns:
        PyTorch names -> arrays of the dtypes stored, in PyTorch's layout.

    Raises:
        UserError: it is not there, holds no such thing, is damaged, or a package is missing to
            fetch it.
    """
    if path.startswith(hugging_face.SCHEME):
        address = hugging_face.parse(path)
        if not address.file:
            raise UserError(f"{path} is not of the form hf://organisation/repository/file")
        path = os.fspath(hugging_face.download(address))
    file = pathlib.Path(path).expanduser()
    if file.is_dir():
        raise UserError(f"{file} is a folder; expected a file of weights")
    if not file.is_file():
        raise UserError(f"there is no file of weights {file}")
    try:
        with file.open("rb") as stream:
            return _read(stream, file.suffix)
    except NotWeightsError as error:
        raise UserError(f"{file} {error}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error


def _read(stream: BinaryIO, suffix: str) -> dict[str, np.ndarray]:
    head = stream.read(256)
    stream.seek(0)
    _refuse_other_files(head)
    if suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(stream.read())
    with _damage("an incomplete or damaged file of PyTorch weights: fetch or write it again"):
        if head.startswith(b"PK\x03\x04"):
            content, storages = _read_archive(stream)
        elif head.startswith(_LEGACY):
            content, storages = _read_legacy(stream)
        else:
            raise NotWeightsError(
                "is a pickle that torch.save has not written: " + _SAVE
                if head[:1] == b"\x80"
                else f"is not a file of PyTorch weights: it begins with {head[:12]!r}"
            )
        state_dict = _state_dict(content)
        return {name: _array(name, tensor, storages) for name, tensor in state_dict.items()}


@contextlib.contextmanager
def _damage(what: str) -> Iterator[None]:
    """Turns what damaged bytes raise, which is anything, into one message."""
    try:
        yield
    except (NotWeightsError, OSError):
        raise
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0][:200]
        raise NotWeightsError(f"is {what} ({reason})") from error


def _refuse_other_files(head: bytes) -> None:
    """Raises for files that are often found in place of weights."""
    text = head.lstrip().lower()
    if not head:
        raise NotWeightsError("is empty: fetch it again")
    if text.startswith(b"version https://git-lfs"):
        raise NotWeightsError(
            "is a pointer of Git LFS and not the weights: run git lfs pull in its repository, or "
            "download the file itself"
        )
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")):
        raise NotWeightsError("is a web page and not the weights: download the file itself")
    if text.startswith(b"{"):
        raise NotWeightsError("is JSON text and not the weights: download the file itself")
    for start, kind in (
        (b"\x1f\x8b", "is compressed with gzip: decompress it"),
        (b"\x89HDF", "is an HDF5 file, as Keras writes: only PyTorch weights can be read"),
        (b"GGUF", "is a GGUF file: only PyTorch weights can be read"),
    ):
        if head.startswith(start):
            raise NotWeightsError(kind)


# --- safetensors ---------------------------------------------------------------------------------


def _read_safetensors(content: bytes) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, deserialize

    try:
        tensors = deserialize(content)
    except (SafetensorError, OverflowError) as error:
        raise NotWeightsError(f"is not a complete .safetensors file: {error}") from error
    arrays = {}
    for name, tensor in tensors:
        dtype = _DTYPES.get(tensor["dtype"])
        if dtype is None:
            raise NotWeightsError(_of_type(name, tensor["dtype"]))
        arrays[name] = np.frombuffer(tensor["data"], dtype).reshape(tensor["shape"])
    if not arrays:
        raise NotWeightsError("holds no tensors")
    return arrays


def _of_type(name: str, kind: str) -> str:
    return f"has the tensor {name} of type {kind}; expected float32, float64, float16 or bfloat16"


# --- pickled files -------------------------------------------------------------------------------


class _Storage(NamedTuple):
    """Memory that tensors share: its key in the file, type, and where it begins."""

    key: str
    kind: str
    start: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A tensor in terms of its storage; `kind` in place of it for one that cannot be read."""

    storage: _Storage | None
    offset: int = 0
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    kind: str = ""

    @property
    def dimensions(self) -> bool:
        """Whether it is an array, not a number."""
        return bool(self.shape or self.kind)


class _Placeholder(dict):
    """Stands for an object of any class: a mapping that keeps items and nothing else."""

    def __new__(cls, *arguments: Any, **options: Any) -> "_Placeholder":
        # copyreg._reconstructor(Class, object, None) stands for an object of Class.
        first = arguments[0] if arguments else None
        if isinstance(first, type) and issubclass(first, _Placeholder):
            cls = first
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__

    def append(self, item: Any) -> None:
        """For placeholders of lists."""

    extend = add = append


class _Unpickler(pickle._Unpickler):
    """Unpickles without calling anything but the functions below.

    The one in Python: of a damaged file, the one in C asks for any amount of memory.
    """

    def __init__(self, stream: io.BufferedIOBase | BinaryIO) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self.itemsizes: dict[str, int] = {}  # bytes of an element of each storage

    def find_class(self, module: str, name: str) -> Any:
        """A function or class of ours for a name; for unknown ones a new placeholder class."""
        root = module.split(".")[0]
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if root == "torch":
            if name.startswith("_rebuild_"):
                return _REBUILD.get(name) or _unreadable(name)
            if name == "Size":
                return tuple
            if name.endswith("Storage") or name in _DTYPES:
                return type(name, (_Kind,), {})
        return type(name, (_Placeholder,), {"__module__": module, "__qualname__": name})

    def persistent_load(self, pid: Any) -> Any:
        """The storage that a tensor refers to, or the class of a pickled module."""
        if pid[0] == "module":
            return pid[1]
        tag, kind, key, _, _, *view = pid
        if tag != "storage":
            raise ValueError(f"it refers to a {tag!r}")
        start = view[0][1] if view and view[0] else 0
        storage = _Storage(str(key), kind.__name__, int(start))
        dtype = _DTYPES.get(storage.kind)
        self.itemsizes[storage.key] = dtype.itemsize if dtype else 1
        return storage

    def load_build(self) -> None:
        """Drops the state of an object: no object here has any."""
        self.stack.pop()  # type: ignore[attr-defined]

    dispatch: ClassVar[dict] = {**pickle._Unpickler.dispatch, pickle.BUILD[0]: load_build}


class _Kind:
    """The base of the classes that stand for a type of storage, or a dtype."""


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> _Tensor:
    return _rebuild_tensor(storage._replace(kind=dtype.__name__), offset, shape, strides)


def _rebuild_parameter(data: Any, *rest: Any) -> Any:
    return data


def _rebuild_from_type(function: Callable, kind: Any, arguments: tuple, *state: Any) -> Any:
    return function(*arguments)


_REBUILD: dict[str, Callable] = {
    "_rebuild_tensor": _rebuild_tensor,
    "_rebuild_tensor_v2": _rebuild_tensor,
    "_rebuild_tensor_v3": _rebuild_tensor_v3,
    "_rebuild_parameter": _rebuild_parameter,
    "_rebuild_parameter_with_state": _rebuild_parameter,
    "_rebuild_from_type": _rebuild_from_type,
    "_rebuild_from_type_v2": _rebuild_from_type,
}


def _unreadable(name: str) -> Callable:
    """A function for tensors that are no plain array of numbers."""
    kind = {
        "_rebuild_qtensor": "quantised",
        "_rebuild_sparse_tensor": "sparse",
        "_rebuild_meta_tensor_no_storage": "meta, without data",
    }.get(name, name.removeprefix("_rebuild_"))
    return lambda *arguments: _Tensor(None, kind=kind)


class _Storages:
    """The bytes of the storages of a file, each read once."""

    def __init__(self, read: Callable[[str], bytes], big_endian: bool) -> None:
        self._read, self._big_endian = read, big_endian
        self._arrays: dict[tuple[str, str], np.ndarray] = {}

    def array(self, storage: _Storage) -> np.ndarray:
        """(elements,) array of a storage.

        Raises:
            NotWeightsError, ValueError: it is not complete.
        """
        dtype = _DTYPES[storage.kind]
        known = self._arrays.get((storage.key, storage.kind))
        if known is None:
            known = np.frombuffer(self._read(storage.key), dtype)
            if self._big_endian:
                known = known.byteswap()
            self._arrays[storage.key, storage.kind] = known
        return known


def _array(name: str, tensor: _Tensor, storages: _Storages) -> np.ndarray:
    """A tensor as an array, which is a view of its storage."""
    storage = tensor.storage
    if storage is None or storage.kind not in _DTYPES:
        raise NotWeightsError(_of_type(name, tensor.kind if storage is None else storage.kind))
    values = storages.array(storage)
    shape, strides = tensor.shape, tensor.strides
    first = storage.start + tensor.offset
    if len(shape) != len(strides) or min((*shape, *strides, first), default=0) < 0:
        raise ValueError(f"{name} has the shape {shape} and the strides {strides}")
    last = first + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if 0 in shape:
        return np.zeros(shape, values.dtype)
    if last >= len(values):
        raise ValueError(f"{name} ends at element {last} of a storage of {len(values)}")
    return np.lib.stride_tricks.as_strided(
        values[first:], shape, [step * values.itemsize for step in strides], writeable=False
    )


def _read_archive(stream: BinaryIO) -> tuple[Any, _Storages]:
    """Content and storages of a file of PyTorch 1.6 or later, a .zip file."""
    archive = zipfile.ZipFile(stream)
    names = set(archive.namelist())
    folders = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise NotWeightsError("is a .zip file without a PyTorch checkpoint in it")
    (folder,) = folders
    if any(name.startswith(f"{folder}code/") or name == f"{folder}constants.pkl" for name in names):
        raise NotWeightsError("is a TorchScript program and not a state dict: " + _SAVE)

    order = f"{folder}byteorder"
    big_endian = order in names and archive.read(order).strip() == b"big"
    content = _Unpickler(io.BytesIO(archive.read(f"{folder}data.pkl"))).load()
    return content, _Storages(lambda key: archive.read(f"{folder}data/{key}"), big_endian)


def _read_legacy(stream: BinaryIO) -> tuple[Any, _Storages]:
    """Content and storages of a file of PyTorch before 1.6, pickles one after another."""
    _, _, system = (_Unpickler(stream).load() for _ in range(3))
    unpickler = _Unpickler(stream)
    content = unpickler.load()
    keys = [str(key) for key in _Unpickler(stream).load()]
    data = stream.read()
    order = ">" if not system.get("little_endian", True) else "<"
    blocks, start = {}, 0
    for key in keys:
        (length,) = struct.unpack_from(f"{order}q", data, start)
        end = start + 8 + length * unpickler.itemsizes[key]
        if length < 0 or end > len(data):
            raise ValueError(f"it ends in storage {key}")
        blocks[key] = data[start + 8 : end]
        start = end
    return content, _Storages(blocks.__getitem__, order == ">")


# --- The state dict in what a file holds ---------------------------------------------------------


def _state_dict(content: Any) -> dict[str, _Tensor]:
    """The one state dict of an unpickled file.

    Raises:
        NotWeightsError: there is none, or more than one.
    """
    found = {id(candidate): (path, candidate) for path, candidate in _candidates(content, "", 0)}
    if len(found) > 1:
        paths = " and ".join(path for path, _ in found.values())
        raise NotWeightsError(
            f"holds {len(found)} state dicts, {paths}, and which one is meant is not known: save "
            "it in a file of its own"
        )
    for _, candidate in found.values():
        entries = {k: v for k, v in candidate.items() if not str(k).endswith("_extra_state")}
        if others := {k: v for k, v in entries.items() if not isinstance(v, _Tensor)}:
            raise NotWeightsError(
                f"has in its state dict what is no tensor: {_listed(others)}: {_SAVE}"
            )
        return {str(key): tensor for key, tensor in entries.items()}
    if isinstance(content, _Placeholder) and not content:
        raise NotWeightsError(
            f"is a pickled object of {_kind(content)}, whose code is not executed, and not a "
            f"state dict: {_SAVE}"
        )
    holds = f"but {_listed(content)}" if isinstance(content, Mapping) else f"but {_kind(content)}"
    raise NotWeightsError(f"holds no state dict, {holds}: {_SAVE}")


def _candidates(content: Any, path: str, depth: int) -> Iterator[tuple[str, Mapping]]:
    """State dicts, mappings with a tensor under a dotted name, and where they are."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    if any(
        isinstance(value, _Tensor) and isinstance(key, str) and "." in key and value.dimensions
        for key, value in content.items()
    ):
        yield path, content
        return
    for key, value in content.items():
        yield from _candidates(value, f"{path}[{key!r}]", depth + 1)


def _listed(entries: Mapping) -> str:
    listed = [f"{key} ({_kind(value)})" for key, value in list(entries.items())[:_NAMED]]
    more = len(entries) - len(listed)
    return (", ".join(listed) or "nothing") + (f" and {more} more" if more else "")


def _kind(value: Any) -> str:
    """The type of an unpickled object, by its own name."""
    if isinstance(value, _Tensor):
        return "tensor"
    kind = value if isinstance(value, type) else type(value)
    own = issubclass(kind, _Placeholder)
    return f"{kind.__module__}.{kind.__qualname__}" if own else kind.__name__


# --- The Hugging Face hub ------------------------------------------------------------------------
