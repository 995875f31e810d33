"""Memory that stands in for a GPU's, in tests of TensorRT's runner."""

import contextlib
from types import SimpleNamespace

import torch


class HostMemory:
    """In place of the GPU's."""

    stream_handle, device_name = 0, "a stand-in"
    uploads = 0

    on_stream = staticmethod(contextlib.nullcontext)
    synchronize = staticmethod(lambda: None)
    record = staticmethod(lambda launch: SimpleNamespace(replay=launch))

    def zeros(self, shape, dtype):
        return torch.zeros(shape, dtype=getattr(torch, dtype))

    def upload(self, array, tensor):
        HostMemory.uploads += 1
        tensor.copy_(torch.from_numpy(array))

    def download(self, tensor):
        return tensor.clone().numpy()
