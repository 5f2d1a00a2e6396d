"""Another device without one: tensors that compute on the processor, say that they lie elsewhere, and meet no others.

Values are real, so sizes may depend on them and results can be compared with those of the processor. The device's name is
``meta``, the one name other than ``cpu`` under which every build of torch makes tensors.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from transformers import PreTrainedModel

DEVICE = torch.device("meta")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
JOINS = (torch.ops.aten.cat.default, torch.ops.aten.stack.default)  # take no number of another device either
INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)  # places: any device


class There(torch.Tensor):
    """A tensor on the other device; ``here`` has its values."""

    @staticmethod
    def __new__(cls, here):
        return torch.Tensor._make_wrapper_subclass(
            cls, here.size(), strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype, device=DEVICE
        )

    def __init__(self, here):
        self.here = here

    def __repr__(self):
        return f"There({self.here})"

    def __reduce_ex__(self, protocol):  # a file holds values
        return self.here.__reduce_ex__(protocol)

    # What torch does inside, where no operation is seen: numbers become tensors on the device, and the other way.

    def tolist(self):
        return self.here.tolist()

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=DEVICE)

    def __getitem__(self, places):
        return super().__getitem__(_there(places))

    def __setitem__(self, places, value):
        super().__setitem__(_there(places), value)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def _there(places):
    """Lists among the places become tensors, as on every device."""
    if isinstance(places, tuple):
        return tuple(map(_there, places))
    return torch.tensor(list(places), device=DEVICE) if isinstance(places, (list, range)) else places


class OtherDevice(TorchDispatchMode):
    """Within it tensors can be made on and moved to the other device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return call(func, args, kwargs or {})


def call(func, args, kwargs):
    """One operation. Tensors of both places in it are an error, but, as with CUDA, for moves, for numbers (tensors without
    dimensions) and for places that lie on the processor and are looked up there."""
    asked = (args[0], args[2:]) if func in INDEXED and isinstance(args[0], There) else (args, kwargs)
    there = any(isinstance(x, There) for x in tree_flatten((args, kwargs))[0])
    left = [x for x in tree_flatten(asked)[0] if isinstance(x, torch.Tensor) and not isinstance(x, There)]
    if there and func not in MOVES and any(x.dim() or func in JOINS or x.is_meta for x in left):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")
    wanted = kwargs.get("device")
    plain = tree_map(lambda x: x.here if isinstance(x, There) else x, (args, kwargs))
    if wanted is not None:
        plain[1]["device"] = torch.device("cpu")
    out = func(*plain[0], **plain[1])
    if func._schema.name.endswith("_"):  # in place
        return args[0]
    goes = there if wanted is None else torch.device(wanted) == DEVICE
    return tree_map(lambda x: There(x) if isinstance(x, torch.Tensor) and goes else x, out)


def _loading(load):
    """transformers' ``from_pretrained``, for which the device's name is one without memory: loaded here and moved."""

    @classmethod
    def from_pretrained(cls, *given, device_map=None, **more):
        found = load.__func__(cls, *given, **more)
        (found[0] if isinstance(found, tuple) else found).to(next(iter((device_map or {"": "cpu"}).values())))
        return found

    return from_pretrained


@contextlib.contextmanager
def other_device():
    """Make :data:`DEVICE` a device that computes; modules are moved to it by ``to``, as to any other.

    Inference mode, which hands operations over before they are taken apart, is no_grad here.
    """
    made, mode, load = torch.tensor, torch._C._InferenceMode, vars(PreTrainedModel)["from_pretrained"]
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.tensor = lambda data, *, device=None, **more: made(data, **more).to(device)  # torch's own asks no mode
    PreTrainedModel.from_pretrained = _loading(load)
    torch._C._InferenceMode = lambda on: torch.no_grad() if on else contextlib.nullcontext()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter becomes one of another class
    try:
        with OtherDevice():
            yield DEVICE
    finally:
        torch.tensor, torch._C._InferenceMode, PreTrainedModel.from_pretrained = made, mode, load
        torch.__future__.set_overwrite_module_params_on_conversion(before)
