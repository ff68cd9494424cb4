"""Any of our sources as a data set of tensorflow-datasets: ``packed/NAME``, with one record of data/records.py for each sample.

A pod reads few large files better than millions of small ones, and what is packed needs none of the data set's own files. TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from unipixel_jax.core.files import aside_of, remove_abandoned, require_shallow
from unipixel_jax.data.annotation import Source
from unipixel_jax.data.loader import FAILURES
from unipixel_jax.data.records import encode
from unipixel_jax.data.sources.base import Filters
from unipixel_jax.errors import UserError

logging.getLogger("absl").addFilter(lambda record: "Using custom data configuration" not in record.getMessage())  # a configuration of our own is meant

Failed = Callable[[str, str], None]
"""A function that is called with the name of each sample that is left out, and the reason."""


class Packed(tfds.core.GeneratorBasedBuilder):
    """Writes the samples of a source in their order."""

    VERSION = tfds.core.Version("1.0.0")
    # Checksums of downloads would lie there. There are none, and finding the path needs a package that tensorflow-datasets does not require.
    code_path = None

    def __init__(self, source: Source, split: str, failed: Failed, filters: Filters, **options: Any) -> None:
        """Prepare to write.

        Args:
            source: its samples.
            split: the name of the split that they become.
            failed: called for every sample that cannot be read and is left out.
            filters: the filters with which the source was opened; the data set's metadata tells them.
            **options: options of ``GeneratorBasedBuilder``, such as ``data_dir``.
        """
        self._source, self._split, self._failed, self._filters = source, split, failed, filters
        config = tfds.core.BuilderConfig(name=config_name(source.name), version=self.VERSION)
        super().__init__(config=config, file_format="array_record", **options)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"annotation": tfds.features.Text(), "files": tfds.features.Sequence(tfds.features.Text())})
        return tfds.core.DatasetInfo(builder=self, features=features, metadata=tfds.core.MetadataDict(), disable_shuffling=True)

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
        return {self._split: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        kinds: list[str] = []
        for number in range(len(self._source)):
            annotation = self._source[number]
            try:
                record = encode(annotation)
            except FAILURES as error:
                self._failed(annotation.name, str(error))
                continue
            kinds.append(annotation.data_type)
            yield number, {"annotation": record.text, "files": list(record.files)}
        if not kinds:
            raise UserError(f"none of the {len(self._source)} samples of {self._source.name} can be read: see the reasons")
        # The metadata holds runs of equal kinds, so that a reader knows the kinds without reading the records.
        self.info.metadata["data_types"] = [[kind, len(list(run))] for kind, run in groupby(kinds)]
        self.info.metadata["filters"] = asdict(self._filters)


def config_name(source: str) -> str:
    """The name under which a source is packed: characters that a path may not hold become ``_``."""
    return re.sub(r"[^\w.+-]", "_", source)


def pack(source: Source, split: str, out: str | Path, failed: Failed, filters: Filters | None = None) -> Path:
    """Write a source as ``OUT/packed/NAME/VERSION``.

    Args:
        source: its samples.
        split: the name of the split that they become.
        out: the folder of data sets, ``data_dir`` of tensorflow-datasets.
        failed: called for every sample that cannot be read and is left out.
        filters: the filters with which the source was opened, None for none. The packed data set can be opened with these only.

    Returns:
        The folder of the data set.

    Raises:
        UserError: it is there already, or no sample can be read.
    """
    folder = Path(out) / Packed.name / config_name(source.name) / str(Packed.VERSION)
    if folder.exists():
        raise UserError(f"{folder} exists: remove it to pack {source.name} again, or choose another folder")
    tfds.disable_progress_bar()
    with _folder_beside(folder) as aside, contextlib.redirect_stdout(io.StringIO()):  # it prints about downloads, of which there are none
        builder = Packed(source, split, failed, filters or Filters(), data_dir=str(aside))
        builder.download_and_prepare()
        folder.parent.mkdir(parents=True, exist_ok=True)
        Path(str(builder.data_path)).rename(folder)
    return folder


@contextlib.contextmanager
def _folder_beside(folder: Path) -> Iterator[Path]:
    """A folder to build in, with all temporary files, of which tensorflow-datasets removes only some; it is gone afterwards, whatever happens."""
    out = folder.parents[2]
    require_shallow(folder.absolute())
    out.mkdir(parents=True, exist_ok=True)
    remove_abandoned(out)
    aside = aside_of(out / folder.name)
    aside.mkdir()
    usual, tempfile.tempdir = tempfile.tempdir, str(aside)
    try:
        yield aside
    finally:
        tempfile.tempdir = usual
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            out.rmdir()  # only if it is empty, as it is where it was made for a build that failed
