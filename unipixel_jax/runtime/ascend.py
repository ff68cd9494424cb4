"""Running an export on an Ascend NPU: programs that CANN's compiler ATC made of the ONNX ones, by CANN's Python module ``acl``.

Neither was ever run on an NPU: the calls follow Huawei's documentation of pyACL and its samples (github.com/Ascend/samples), and were tried against a stand-in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unipixel_jax.errors import UserError
from unipixel_jax.runtime.backends import Arrays
from unipixel_jax.runtime.manifest import Array, PartFile

SCRIPT = "atc.sh"
"""The file of an ONNX export that compiles all its parts."""
DEVICE = 0
"""The first of the devices that the environment variable ASCEND_RT_VISIBLE_DEVICES shows."""
REPEATED = 100002
"""What pyACL answers where it was initialised before."""
HUGE_FIRST, TO_DEVICE, TO_HOST = 0, 1, 2
"""pyACL's numbers of a way to allocate memory, and of two directions of copies."""


def script(parts: list[str]) -> str:
    """Return the shell script that compiles the ONNX programs of parts with ATC, in the dtypes that they have."""
    lines = [
        "#!/bin/sh",
        "# Compile every part for an Ascend NPU. The name of the chip is in the table of: npu-smi info",
        "set -eu",
        'cd "$(dirname "$0")"',
        'soc="${1:?usage: sh atc.sh SOC_VERSION, for example: sh atc.sh Ascend310P3}"',
    ]
    option = '--soc_version="$soc" --precision_mode=must_keep_origin_dtype'
    return "\n".join([*lines, *(f"atc --framework=5 --model={part}.onnx --output={part} {option}" for part in parts), ""])


class AclProgram:
    """A program that ATC compiled, ``NAME.om`` beside ``NAME.onnx``. Its inputs and outputs have buffers on the device for as long as the process lives.

    Args:
        folder: the folder of the export.
        part: the program.

    Raises:
        UserError: pyACL is missing, the program was not compiled or is one of other shapes, or the NPU refuses it.
    """

    def __init__(self, folder: Path, part: PartFile) -> None:
        try:
            import acl  # type: ignore[import-not-found]
        except ImportError:
            raise UserError("running on an Ascend NPU needs pyACL, the module acl of CANN: install CANN's toolkit, and source its set_env.sh") from None
        path = (folder / part.file).with_suffix(".om")
        if not path.exists():
            raise UserError(f"{path} does not exist: compile the export on a machine with CANN by: sh {folder / SCRIPT} SOC_VERSION")
        self._acl: Any = acl
        status = acl.init()
        _done(0 if status == REPEATED else status, "init")
        _done(acl.rt.set_device(DEVICE), "rt.set_device")
        self._model = _value(acl.mdl.load_from_file(str(path)), f"mdl.load_from_file({path})")
        about = acl.mdl.create_desc()
        _done(acl.mdl.get_desc(about, self._model), "mdl.get_desc")
        known = {own.name: own for own in part.inputs}
        names = [acl.mdl.get_input_name_by_index(about, number) for number in range(acl.mdl.get_num_inputs(about))]
        taken = [known[name] for name in names if name in known]
        sizes = [acl.mdl.get_input_size_by_index(about, number) for number in range(len(names))]
        sizes += [acl.mdl.get_output_size_by_index(about, number) for number in range(acl.mdl.get_num_outputs(about))]
        if len(taken) < len(names) or sizes != [_bytes(own) for own in (*taken, *part.outputs)]:
            raise UserError(f"{path} has other inputs or outputs than {part.file}: compile this export by {SCRIPT}")
        self._inputs = [(own, self._buffer(own)) for own in taken]
        self._outputs = [(own, self._buffer(own)) for own in part.outputs]
        self._datasets = [self._dataset(held) for held in (self._inputs, self._outputs)]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """See ``Program``. An input that the program does not depend on is none of the NPU's."""
        acl = self._acl
        _done(acl.rt.set_device(DEVICE), "rt.set_device")  # a thread of its own has none yet
        for own, buffer in self._inputs:
            array = np.ascontiguousarray(inputs[own.name])
            _done(acl.rt.memcpy(buffer, array.nbytes, array.ctypes.data, array.nbytes, TO_DEVICE), f"rt.memcpy of {own.name}")
        _done(acl.mdl.execute(self._model, *self._datasets), "mdl.execute")
        found: dict[str, NDArray[np.generic]] = {}
        for own, buffer in self._outputs:
            array = np.empty(own.shape, own.dtype)
            _done(acl.rt.memcpy(array.ctypes.data, array.nbytes, buffer, array.nbytes, TO_HOST), f"rt.memcpy of {own.name}")
            found[own.name] = array
        return found

    def _buffer(self, own: Array) -> int:
        """Allocate an array on the device, and return its address."""
        address: int = _value(self._acl.rt.malloc(max(_bytes(own), 1), HUGE_FIRST), f"rt.malloc of {_bytes(own)} bytes")
        return address

    def _dataset(self, held: list[tuple[Array, int]]) -> Any:
        """Return arrays on the device as what pyACL calls a dataset."""
        dataset = self._acl.mdl.create_dataset()
        for own, buffer in held:
            _value(self._acl.mdl.add_dataset_buffer(dataset, self._acl.create_data_buffer(buffer, _bytes(own))), "mdl.add_dataset_buffer")
        return dataset


def _bytes(own: Array) -> int:
    return int(np.prod(own.shape, dtype=np.int64)) * np.dtype(own.dtype).itemsize


def _done(status: int, what: str) -> None:
    """Raise where a call of pyACL failed."""
    if status:
        raise UserError(f"acl.{what} failed with {status}: see Huawei's list of pyACL's error codes, and the logs of CANN in ~/ascend/log")


def _value(answer: tuple[Any, int], what: str) -> Any:
    """Return what a call of pyACL returns beside its status."""
    _done(answer[1], what)
    return answer[0]
