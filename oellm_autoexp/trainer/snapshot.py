"""A copy of a state that training may go on beside: tensors in buffers of the host that are used again."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from oellm_autoexp.errors import CheckpointError

#: What `torch.load(weights_only=True)` makes again, beside tensors, and containers of all these.
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)

#: Bytes, and whether they are locked in memory for devices.
_Key = tuple[int, bool]


def refuse_unsafe(value: Any, where: str = "state") -> None:
    """See that a state can be loaded without running code from the file.

    Raises:
        CheckpointError: it cannot; with the key of the value that needs it.
    """
    if isinstance(value, torch.Tensor) or type(value) in _PLAIN:
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            refuse_unsafe(key, f"{where} (a key)")
            refuse_unsafe(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple, set):
        for index, item in enumerate(value):
            refuse_unsafe(item, f"{where}[{index}]")
    else:
        raise CheckpointError(
            f"is a {type(value).__module__}.{type(value).__qualname__}, which only code could make again",
            where=where,
            hint="keep tensors, numbers, text, lists and dicts in it, or say allow_pickle=True",
        )


class Snapshots:
    """Copies states: each copy takes over the memory of the one before, which must not be used any more."""

    def __init__(self) -> None:
        self._buffers: dict[_Key, list[torch.Tensor]] = {}

    def take(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The copy. Tensors that share memory share it in the copy; those of devices are on the host."""
        copier = _Copier(self._buffers)
        with torch.no_grad():
            copied = {key: copier.copy(value) for key, value in state.items()}
        for device in copier.devices:
            torch.cuda.current_stream(device).synchronize()
        self._buffers = copier.taken
        return copied


class _Copier:
    def __init__(self, free: Mapping[_Key, list[torch.Tensor]]) -> None:
        self.taken: dict[_Key, list[torch.Tensor]] = defaultdict(list)
        self.devices: set[torch.device] = set()
        self._free = {key: list(buffers) for key, buffers in free.items()}
        self._storages: dict[tuple[torch.device, int], torch.Tensor] = {}
        # By id; the objects live as long as the state does.
        self._copied: dict[int, Any] = {}

    def copy(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if id(value) not in self._copied:
            self._copied[id(value)] = self._copy(value)
        return self._copied[id(value)]

    def _copy(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if type(value) in (dict, OrderedDict):
            return type(value)((self.copy(key), self.copy(item)) for key, item in value.items())
        if type(value) in (list, tuple, set):
            return type(value)(map(self.copy, value))
        return copy.deepcopy(value)

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        known = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
        if not known or tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or not tensor.numel():
            return tensor.detach().clone().to("cpu").requires_grad_(tensor.requires_grad)
        memory = self._memory(tensor)
        copied = torch.empty(0, dtype=tensor.dtype)
        copied.set_(memory.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def _memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of all the memory that the tensor is a view of, as bytes."""
        storage, device = tensor.untyped_storage(), tensor.device
        place = (device, storage.data_ptr())
        if place not in self._storages:
            key = (storage.nbytes(), device.type == "cuda")
            free = self._free.get(key)
            buffer = free.pop() if free else torch.empty(key[0], dtype=torch.uint8, pin_memory=key[1])
            source = torch.empty(0, dtype=torch.uint8, device=device).set_(storage)
            buffer.copy_(source, non_blocking=key[1])
            if key[1]:
                self.devices.add(device)
            self.taken[key].append(buffer)
            self._storages[place] = buffer
        return self._storages[place]
