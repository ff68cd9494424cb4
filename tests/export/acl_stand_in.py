"""A stand-in for pyACL, the Python module of Ascend NPUs: memory of the host in place of the device's, and programs given as functions of numpy arrays."""

import ctypes
import types

import numpy as np

REPEATED = 100002


class Acl(types.ModuleType):
    """The calls that an ``AclProgram`` makes, with the signatures of Huawei's samples.

    Args:
        load: a function of a path that returns the program: names and dtypes with shapes of its inputs, the same of its outputs, and a function of the
            inputs by name that returns the outputs in order.
        fails: the name of a call that fails.
    """

    def __init__(self, load, fails=""):
        super().__init__("acl")
        self.load, self.fails, self.started = load, fails, False
        self.memory, self.programs = {}, []
        self.rt = types.SimpleNamespace(set_device=self.set_device, malloc=self.malloc, memcpy=self.memcpy)
        self.mdl = types.SimpleNamespace(
            load_from_file=self.load_from_file,
            create_desc=lambda: {},
            get_desc=self.get_desc,
            get_num_inputs=lambda about: len(about["program"][0]),
            get_num_outputs=lambda about: len(about["program"][1]),
            get_input_name_by_index=lambda about, number: about["program"][0][number][0],
            get_input_size_by_index=lambda about, number: size(about["program"][0][number]),
            get_output_size_by_index=lambda about, number: size(about["program"][1][number]),
            create_dataset=list,
            add_dataset_buffer=self.add_dataset_buffer,
            execute=self.execute,
        )

    def status(self, name):
        return 507033 if name == self.fails else 0

    def init(self):
        answer, self.started = REPEATED if self.started else 0, True
        return answer

    def set_device(self, number):
        assert self.started and number == 0
        return self.status("set_device")

    def malloc(self, count, policy):
        assert policy == 0
        block = ctypes.create_string_buffer(count)
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block), self.status("malloc")

    def memcpy(self, target, room, source, count, direction):
        on_device = target if direction == 1 else source
        assert on_device in self.memory and count <= room and count <= len(self.memory[on_device])
        ctypes.memmove(target, source, count)
        return self.status("memcpy")

    def load_from_file(self, path):
        self.programs.append(self.load(path))
        return len(self.programs) - 1, self.status("load_from_file")

    def get_desc(self, about, model):
        about["program"] = self.programs[model]
        return 0

    def create_data_buffer(self, address, count):
        assert address in self.memory
        return address, count

    def add_dataset_buffer(self, dataset, buffer):
        dataset.append(buffer)
        return dataset, 0

    def execute(self, model, inputs, outputs):
        taken, made, function = self.programs[model]
        arrays = {own[0]: np.frombuffer(self.memory[address], own[1])[: count(own)].reshape(own[2]) for own, (address, _) in zip(taken, inputs, strict=True)}
        for own, value, (address, room) in zip(made, function(arrays), outputs, strict=True):
            data = np.ascontiguousarray(value, own[1]).tobytes()
            assert len(data) == room
            ctypes.memmove(address, data, room)
        return self.status("execute")


def count(own):
    return int(np.prod(own[2], dtype=np.int64))


def size(own):
    return count(own) * np.dtype(own[1]).itemsize
