"""Sources in tensorflow-datasets' ArrayRecord files: ``tfds:NAME`` or ``tfds:NAME/CONFIG`` below the data root.

``unipixel-jax data pack`` writes ``packed/...``; ``ref_coco`` and ``davis`` are those of tensorflow-datasets, prepared with
``file_format="array_record"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from unipixel_jax.core.files import read_json_object, require_regular_file
from unipixel_jax.data.annotation import Annotation
from unipixel_jax.data.records import Record, decode
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.data.tfds.davis import davis_annotation
from unipixel_jax.data.tfds.ref_coco import ref_coco_annotation
from unipixel_jax.errors import UserError

PREFIX = "tfds:"

_ADVICE = "pack or prepare the data set again"
_FEATURES = "tensorflow_datasets.core.features."


@dataclass(frozen=True)
class _Reader:
    """How the records of a data set are read.

    Attributes:
        convert: makes an annotation of a record and the source's name.
        data_type: the data type of all samples; None where the data set's metadata tells it.
        encoded: the features that stay as they are in the file, in the form of ``as_data_source``'s ``decoders``.
    """

    convert: Callable[[Mapping[str, Any], str], Annotation]
    data_type: str | None
    encoded: Mapping[str, Any]


def _packed_annotation(record: Mapping[str, Any], name: str) -> Annotation:
    return decode(Record(record["annotation"].decode("utf-8"), tuple(record["files"])))


class _Bytes(tfds.decode.SkipDecoding):
    """Leaves images as the bytes of their files, in lists of images too, for which tensorflow-datasets' own class only works with TensorFlow."""

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        return serialized_example


_BYTES = _Bytes()
READERS: Mapping[str, _Reader] = {
    "packed": _Reader(_packed_annotation, None, {}),
    "ref_coco": _Reader(ref_coco_annotation, "seg_image", {"image": _BYTES, "objects": {"mask": _BYTES}}),
    "davis": _Reader(davis_annotation, "mem_point_video", {"video": {"frames": _BYTES, "segmentations": _BYTES}}),
}
"""How the records of each data set are read, by its name."""


@dataclass(frozen=True)
class TfdsSource:
    """A data set of tensorflow-datasets, which each process opens when it is first asked for a sample.

    Attributes:
        name: ``tfds:NAME`` or ``tfds:NAME/CONFIG``.
        folder: the folder of the data set, with its ``dataset_info.json``.
        split: the split to read.
    """

    name: str
    folder: Path
    split: str

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Annotation:
        try:
            return self._reader.convert(self._records[index], self.name)
        except UserError:
            raise
        except Exception as error:  # a broken shard can raise nearly anything
            raise UserError(f"{self.folder}: record {index} of {self.split!r} is broken ({error!r}): {_ADVICE}") from error

    @property
    def data_types(self) -> Sequence[str]:
        """The ``data_type`` of every sample."""
        if self._reader.data_type is not None:
            return [self._reader.data_type] * len(self)
        runs = (self._builder.info.metadata or {}).get("data_types")
        if not isinstance(runs, list) or not all(isinstance(run, list) and list(map(type, run)) == [str, int] for run in runs):
            raise UserError(f"{self.folder} does not tell the kinds of its samples: {_ADVICE}")
        if sum(count for _, count in runs) != len(self) or min(count for _, count in runs) < 0:
            raise UserError(f"{self.folder} tells other kinds than those of {len(self)} samples: {_ADVICE}")
        return [kind for kind, count in runs for _ in range(count)]

    @property
    def _reader(self) -> _Reader:
        return READERS[self.name.removeprefix(PREFIX).split("/")[0]]

    @cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        return _open_builder(self.folder)

    @cached_property
    def _records(self) -> Any:
        return self._builder.as_data_source(split=self.split, decoders=self._reader.encoded or None)

    def __getstate__(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("name", "folder", "split")}


def open_tfds(name: str, root: str | Path, split: str = "train", filters: Filters | None = None) -> TfdsSource:
    """Open a data set.

    Args:
        name: ``tfds:NAME`` or ``tfds:NAME/CONFIG``.
        root: the folder of data sets, ``data_dir`` of tensorflow-datasets.
        split: the split to read.
        filters: the filters with which it must have been packed; None for any. The data sets of tensorflow-datasets have none.

    Raises:
        UserError: an unknown name, no such data set below the root, one in another file format, without that split, broken, or with other filters.
    """
    path = name.removeprefix(PREFIX)
    if path.split("/")[0] not in READERS:
        raise UserError(f"{name}: expected one of {', '.join(PREFIX + known for known in READERS)}, with /CONFIG after it where there are several")
    found = sorted(Path(root, path).glob("**/dataset_info.json"))
    configs = {info.parent.parent for info in found}
    if len(configs) != 1:
        there = ", ".join(sorted(PREFIX + str(config.relative_to(root)) for config in configs)) or "nothing"
        raise UserError(f"{name} leads to {there} below {root}: expected one prepared data set")
    folder = max((info.parent for info in found), key=lambda version: [int(n) if n.isdecimal() else 0 for n in version.name.split(".")])
    builder = _open_builder(folder)
    if split not in builder.info.splits:
        raise UserError(f"{name} has no split {split!r}, expected one of {', '.join(builder.info.splits)}")
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise UserError(f"{folder} is kept as {file_format and file_format.value}, expected array_record: prepare it with file_format='array_record'")
    _check_shards(builder.info.splits[split], folder)
    told = (builder.info.metadata or {}).get("filters", {})
    if not isinstance(told, dict) or not told.keys() <= {field.name for field in fields(Filters)}:
        raise UserError(f"{folder} was packed with the filters {str(told)[:60]}, expected some of docs/data.md: {_ADVICE}")
    packed = Filters(**told)
    if filters is not None and filters != packed:
        raise UserError(
            f"{name}: its samples were packed with the filters {packed}, asked for are the filters {filters}; expected the same, since what is packed is not "
            "filtered again: change data.filters, or pack the samples again"
        )
    return TfdsSource(name, folder, split)


def _open_builder(folder: Path) -> tfds.core.DatasetBuilder:
    """The data set in a folder. Its files name classes of features, whose modules get imported, so only classes of tensorflow-datasets may be named."""
    for path in folder.iterdir():
        require_regular_file(path, _ADVICE)
        if path.suffix == ".json":
            read_json_object(path, _ADVICE)
    if unknown := [name for name in _classes(read_json_object(folder / "features.json", _ADVICE)) if not name.startswith(_FEATURES)]:
        raise UserError(f"{folder / 'features.json'} names the class {unknown[0]!r}, expected those in {_FEATURES}: {_ADVICE}")
    try:
        return tfds.builder_from_directory(str(folder))
    except Exception as error:  # other files than expected can raise nearly anything
        raise UserError(f"{folder} is no data set of tensorflow-datasets, or broken ({error!r}): {_ADVICE}") from error


def _classes(content: Any) -> Iterator[str]:
    """All values of the keys under which the file of features names classes, in its newer and its older layout."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, str) and key in ("pythonClassName", "python_class_name", "type"):
            yield value
        elif isinstance(value, dict | list):
            yield from _classes(value)


def _check_shards(split: Any, folder: Path) -> None:
    """Check that the files are there and large enough for the records that the data set's metadata tells of.

    Raises:
        UserError: one is missing, or too small.
    """
    try:
        shards = list(zip(map(Path, split.filepaths), split.shard_lengths, strict=True))
    except Exception as error:  # as in _open_builder
        raise UserError(f"{folder} does not tell its shards ({error!r}): {_ADVICE}") from error
    for path, count in shards:
        require_regular_file(path, _ADVICE)
        if not 0 <= count <= path.stat().st_size:
            raise UserError(f"{path} has {path.stat().st_size} bytes, too few for {count} records: {_ADVICE}")
