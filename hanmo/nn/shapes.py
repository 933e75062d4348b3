"""What a computation keeps in memory, found without computing it: floating tensors have shapes alone."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

_BY_MASK = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default)


class Shapes(TorchDispatchMode):
    """Follows what is computed from the parameters of a ``shaped`` network by shape, and counts the bytes in use.

    All else is computed as ever: ids, labels and masks, on whose values it depends what is computed.

    Attributes:
        live: bytes of the tensors that were made since the mode was entered, and are still in use.
        peak: the most that ``live`` has been.
        operations: additions and multiplications of matrix products and attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.live = self.peak = self.operations = 0
        self._counted: set[int] = set()

    def shaped(self, network: nn.Module, device: torch.device) -> None:
        """Replace the weights of a network by their shapes."""
        shared: dict[int, nn.Parameter] = {}  # tied weights stay tied
        for module in network.modules():
            for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if id(parameter) not in shared:
                    with self.fake:
                        empty = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                    shared[id(parameter)] = nn.Parameter(empty, parameter.requires_grad)
                setattr(module, name, shared[id(parameter)])
            for name, buffer in list(module.named_buffers(recurse=False)):
                if buffer.is_meta:
                    empty = torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
                    setattr(module, name, self.fake.from_tensor(empty) if buffer.is_floating_point() else empty)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if any(isinstance(one, FakeTensor) for one in _tensors((args, kwargs))):
            args, func = _by_places(func, args)
            with self.fake:
                found = func(*args, **kwargs)
            if count := flop_registry.get(func.overloadpacket):
                self.operations += count(*args, **kwargs, out_val=found)
        else:
            found = func(*args, **kwargs)
        for one in _tensors(found):
            self._count(one)
        return found

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._counted:
            return
        size = storage.nbytes()
        self._counted.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self.live -= size


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors among the arguments or results of an operation."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def is_shaped(network: nn.Module) -> bool:
    return any(isinstance(parameter, FakeTensor) for parameter in network.parameters())


def _by_places(func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[..., Any]]:
    """The same with the places of a mask in place of the mask, whose number of places is known."""
    if func is torch.ops.aten.masked_select.default:
        return (args[0], list(args[1].nonzero().unbind(1))), torch.ops.aten.index.Tensor
    if func in _BY_MASK:
        places: list[Tensor | None] = []
        for one in args[1]:
            masks = one is not None and one.dtype == torch.bool
            places += one.nonzero().unbind(1) if masks else [one]
        return (args[0], places, *args[2:]), func
    return args, func
