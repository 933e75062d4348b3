"""A pretended accelerator: on a machine without a GPU it refuses what a GPU would refuse, and computes what the CPU does.

    with pretended("cuda") as device:
        network.to(device)
        ...                                  # any code that uses .device, .to(device), device=…

A tensor on the pretended device (``OnDevice``) holds an ordinary CPU tensor, so that every value is the CPU's; only its
``.device`` is another. Every operation on one passes ``OnDevice.__torch_dispatch__``, where CUDA's rules hold:

* A tensor on the host and one on the device in one operation are an error. Allowed, as on CUDA: copies, host tensors
  without dimensions in pointwise operations, a device tensor indexed by a host tensor.
* ``numpy()`` is an error.
* On "mps" a float64 tensor is an error, too.

Not seen: which kernels a GPU picks, and how they round. Autocast stays the CPU's.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import TrainingArguments

from hanmo.generation import slots

aten = torch.ops.aten
_COPIES = {aten._to_copy.default, aten.copy_.default}
_READS_INDEX = {aten.index.Tensor, aten._unsafe_index.Tensor}
_WRITES_INDEX = {aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_FILLS = {aten.fill.Tensor, aten.fill_.Tensor, aten.masked_fill.Tensor, aten.masked_fill_.Tensor}
# What has a size that only the device knows, or is read by the host.
_WAITS = {aten._local_scalar_dense.default, aten.equal.default, aten.nonzero.default, aten.masked_select.default}
_WAITS |= {aten.unique_dim.default, aten._unique2.default}
_HOST = torch.device("cpu")
_active: _Pretended | None = None


class OnDevice(Tensor):
    """A tensor that says it is on the pretended device; ``inner``, on the CPU, has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnDevice:
        if _active is not None and inner.dtype in _active.unknown_dtypes:
            raise TypeError(
                f"Cannot convert a {_active.device} tensor to {inner.dtype}: the device does not support it"
            )
        made = Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, device=_HOST, requires_grad=False,
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return _active.device if _active is not None else torch.device("cuda", 0)

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return self.device.type == "cuda"

    @property
    def is_mps(self) -> bool:  # type: ignore[override]
        return self.device.type == "mps"

    is_cpu = False  # type: ignore[assignment]

    def get_device(self) -> int:
        return 0

    def untyped_storage(self) -> Any:
        return self.inner.untyped_storage()

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _count("waits")
        return self.inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy  # type: ignore[assignment]

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnDevice({self.inner!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = OnDevice(self.inner.detach().clone())
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied, self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = _HOST  # autograd repeats what C++ takes for the device; moves are made by ``_moved``
        tensors: list[Tensor] = []

        def plain(one: Tensor) -> Tensor:
            tensors.append(one)
            return _inner(one)

        plain_args, plain_kwargs = _each(args, plain), _each(kwargs, plain)
        if _active is not None:
            _active.check(func, args, tensors)
        masked = func in (*_READS_INDEX, *_WRITES_INDEX) and any(
            isinstance(one, OnDevice) and one.dtype == torch.bool for one in args[1]
        )
        if func in _WAITS or masked:
            _count("waits")
        if func in (*_READS_INDEX, *_WRITES_INDEX) and any(
            not isinstance(one, OnDevice) and one.dim() for one in tensors
        ):
            _count("copies")
        same = {id(_inner(one)): one for one in tensors}  # what is changed in place is returned itself
        to_host = func is aten.copy_.default and not isinstance(args[0], OnDevice)

        def wrapped(one: Tensor) -> Tensor:
            return same[id(one)] if id(one) in same else one if to_host else OnDevice(one)

        return _each(func(*plain_args, **plain_kwargs), wrapped)


def _count(what: str) -> None:
    if _active is not None:
        _active.traffic[what] += 1


def traffic() -> Counter[str]:
    """How often the host has waited for the device ("waits"), and copied something to it ("copies"), since the last call."""
    assert _active is not None, "inside of pretended()"
    counted, _active.traffic = _active.traffic, Counter()
    return counted


def _each(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The value with every tensor in it changed; what operations take and give nests in lists, tuples and dicts."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)([_each(one, change) for one in value])
    return {name: _each(one, change) for name, one in value.items()} if isinstance(value, dict) else value


def _inner(one: Tensor) -> Tensor:
    return one.inner if isinstance(one, OnDevice) else one


def _is_allowed(func: Any, args: Any, hosts: list[Tensor]) -> bool:
    """Whether a GPU takes these tensors of the host beside its own."""
    to_device = isinstance(args[0], OnDevice) if args else False
    if func in _READS_INDEX:
        return to_device
    if func in _WRITES_INDEX:
        return to_device and (isinstance(args[2], OnDevice) or args[2].dim() == 0)
    scalars = all(tensor.dim() == 0 for tensor in hosts)
    pointwise = torch.Tag.pointwise in func.tags or func in _FILLS
    return scalars and pointwise and (to_device or not func._schema.is_mutable)


class _Move(torch.autograd.Function):
    """A copy on the other side, in a dtype; gradients come back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.dtype, ctx.on_device = tensor.dtype, isinstance(tensor, OnDevice)
        _count("waits" if ctx.on_device else "copies")
        copied = aten._to_copy.default(_inner(tensor.detach()), dtype=dtype)
        return copied if ctx.on_device else OnDevice(copied)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        plain = _inner(gradient).to(ctx.dtype)
        return OnDevice(plain) if ctx.on_device else plain, None


class _Pretended(TorchFunctionMode):
    """Sees what makes and moves tensors, which no operation's dispatch shows."""

    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device
        self.unknown_dtypes = {torch.float64, torch.complex128} if device.type == "mps" else set()
        self.traffic = Counter[str]()
        self._in_c = 0  # calls of functions whose own tensors, made in C++, look like the host's

    def is_it(self, device: Any) -> bool:
        return device is not None and (isinstance(device, int) or torch.device(device).type == self.device.type)

    def check(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        """RuntimeError if an operation mixes devices as no GPU would let it."""
        ours, hosts = [], []
        for tensor in tensors:
            (ours if isinstance(tensor, OnDevice) else hosts).append(tensor)
        if not ours or not hosts or func in _COPIES or self._in_c or _is_allowed(func, args, hosts):
            return
        shapes = [[tuple(tensor.shape) for tensor in side] for side in (ours, hosts)]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {self.device} and cpu! "
            f"({func}: {self.device} {shapes[0]}, cpu {shapes[1]})"
        )

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is Tensor.to:
            return self._moved(*args, **kwargs)
        if func is Tensor.cpu:
            return self._moved(args[0], _HOST)
        if func in (Tensor.cuda, Tensor.pin_memory):
            return self._moved(args[0], self.device) if func is Tensor.cuda else args[0]
        if func == Tensor.data.__get__ and isinstance(args[0], OnDevice):  # type: ignore[attr-defined]
            return OnDevice(args[0].inner)
        if func == Tensor.data.__set__:  # type: ignore[attr-defined]
            return self._set_data(*args)
        if func in (torch.tensor, torch.as_tensor) and args and isinstance(args[0], Tensor):
            copied = args[0].detach().clone() if func is torch.tensor else args[0]
            return self._moved(copied, kwargs.get("device"), kwargs.get("dtype"))
        if func is nn.functional.scaled_dot_product_attention:
            if len({isinstance(one, OnDevice) for one in (*args, *kwargs.values()) if isinstance(one, Tensor)}) > 1:
                raise RuntimeError(f"Expected all tensors to be on the same device: attention on {self.device} and cpu")
            self._in_c += 1
            try:
                return func(*args, **kwargs)
            finally:
                self._in_c -= 1
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        wanted = self.is_it(kwargs["device"])
        made = func(*args, **{**kwargs, "device": _HOST if wanted else kwargs["device"]})
        if not isinstance(made, Tensor) or isinstance(made, OnDevice) == wanted:
            return made
        if wanted and func in (torch.tensor, torch.as_tensor) and made.numel():
            _count("copies")
        one = OnDevice(made.detach()) if wanted else made.detach().inner  # type: ignore[attr-defined]
        return one.requires_grad_(made.requires_grad)

    def _moved(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``tensor.to(...)`` in all its forms."""
        copy = bool(kwargs.pop("copy", False))
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, Tensor):
            device, dtype = other.device, other.dtype
        else:
            device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        dtype = dtype or tensor.dtype
        if device is not None and self.is_it(device) != isinstance(tensor, OnDevice):
            return _Move.apply(tensor, dtype)  # type: ignore[no-any-return]
        if dtype != tensor.dtype:
            return aten._to_copy.default(tensor, dtype=dtype)
        return tensor.clone() if copy else tensor

    def _set_data(self, tensor: Tensor, value: Tensor) -> None:
        """``tensor.data = value``: C++ exchanges what it knows of the tensor, which is not the values."""
        if isinstance(tensor, OnDevice) != isinstance(value, OnDevice):
            raise RuntimeError("tensor.data = value: the tensors are on different devices")
        if isinstance(tensor, OnDevice):
            if tensor.dtype != value.dtype or tensor.shape != value.shape:
                Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]
            tensor.inner = _inner(value)
        else:
            Tensor.data.__set__(tensor, value)  # type: ignore[attr-defined]

    def move(self, network: nn.Module) -> None:
        """All parameters and buffers to the device; tied ones stay tied."""
        made: dict[int, nn.Parameter] = {}
        for module in network.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter, OnDevice):
                    if id(parameter) not in made:
                        made[id(parameter)] = nn.Parameter(OnDevice(parameter.detach()), parameter.requires_grad)
                    module._parameters[name] = made[id(parameter)]
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, OnDevice):
                    module._buffers[name] = OnDevice(buffer.detach())


class _Generator(torch.Generator):
    """A generator for the pretended device: the CPU's, so that draws are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")


def _asked_by_hanmo() -> bool:
    """Libraries would call CUDA itself."""
    return str(sys._getframe(1).f_globals.get("__name__", "")).startswith("hanmo.")


@contextmanager
def pretended(kind: str = "cuda") -> Iterator[torch.device]:
    """The device, "cuda" or "mps", which until the block ends is the one that hanmo opens models and trains on."""
    global _active
    mode = _Pretended(torch.device(kind, 0))
    plain_to = nn.Module.to

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if mode.is_it(device):
            mode.move(module)
        elif device is not None and any(isinstance(one, OnDevice) for one in module.parameters()):
            raise NotImplementedError("the pretended device does not give networks back")
        return plain_to(module, dtype) if dtype is not None else module

    patches = [
        patch.object(torch, "Generator", _Generator),
        patch.object(torch, "inference_mode", torch.no_grad),  # OnDevice cannot be made under inference mode
        patch.object(nn.Module, "to", to),
        patch.object(TrainingArguments, "device", property(lambda self: self._setup_devices and mode.device)),
        patch.object(TrainingArguments, "n_gpu", property(lambda self: 1)),
        patch.object(Accelerator, "device", property(lambda self: mode.device)),
        patch.object(slots, "cuda_graph", lambda step: step),  # a graph is replayed as its steps
        patch.object(torch.cuda, "get_device_name", lambda device=None: f"a pretended {kind}"),
    ]
    if kind == "cuda":
        patches.append(patch.object(torch.cuda, "is_available", _asked_by_hanmo))
        patches += [
            patch.object(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True),
            patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
            patch("transformers.training_args.is_torch_bf16_gpu_available", lambda: True),
            patch("accelerate.accelerator.is_bf16_available", lambda ignore_tpu=False: True),
        ]
    before, _active = _active, mode
    try:
        for one in patches:
            one.start()
        with mode:
            yield mode.device
    finally:
        for one in reversed(patches):
            one.stop()
        _active = before
