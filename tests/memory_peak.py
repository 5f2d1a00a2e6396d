"""The largest sum of bytes that tensors take at one time, counted as operations make them and their last holder lets go.

It counts what the allocator of any device would be asked for. Under torch's fake tensors it counts without taking memory, so a
model of any size can be asked. What a kernel takes for itself while it runs is not seen.
"""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class Peak(TorchDispatchMode):
    """Bytes of the tensors that operations within it make: ``now`` and at most (``peak``)."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, torch.Tensor):  # what was there before is not counted, nor a view of it
                self.known.setdefault(x.untyped_storage(), 0)
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and (storage := x.untyped_storage()) not in self.known:
                self.known[storage] = size = storage.nbytes()
                self.now += size
                weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.now)
        return out

    def _free(self, size):
        self.now -= size
