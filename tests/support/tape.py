"""A CUDA graph for the CPU: it replays the kernels of a step on the addresses that it was captured with."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class FreedMemoryError(RuntimeError):
    """A kernel reads memory that was freed after the capture."""


class Outside:
    """A tensor that the step did not make: an address, which does not keep the memory."""

    def __init__(self, tensor):
        self.storage = StorageWeakRef(tensor.untyped_storage())
        self.layout = tensor.storage_offset(), tensor.size(), tensor.stride()
        self.dtype = tensor.dtype

    def tensor(self):
        storage = torch.UntypedStorage._new_with_weak_ptr(self.storage.cdata)
        if storage is None:
            raise FreedMemoryError(f"{self.dtype} of shape {tuple(self.layout[1])} was freed")
        return torch.empty(0, dtype=self.dtype).set_(storage, *self.layout)


class Tape(TorchDispatchMode):
    """Records the kernels that run inside it; :meth:`replay` runs them again."""

    def __init__(self):
        super().__init__()
        self.kernels, self.inside = [], set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = args, kwargs or {}
        addresses = tree_map_only(torch.Tensor, self.address, inputs)
        read = {storage_of(tensor) for tensor in tensors_of(inputs)}
        result = func(*inputs[0], **inputs[1])
        # Views and results in place are addresses of an input; others are memory of the tape's own.
        made = [None if storage_of(tensor) in read else tensor for tensor in tensors_of(result)]
        self.inside.update(storage_of(tensor) for tensor in made if tensor is not None)
        self.kernels.append((func, addresses, made))
        return result

    def address(self, tensor):
        return tensor if storage_of(tensor) in self.inside else Outside(tensor)

    @torch.no_grad()
    def replay(self):
        for func, addresses, made in self.kernels:
            args, kwargs = tree_map_only(Outside, Outside.tensor, addresses)
            for own, new in zip(made, tensors_of(func(*args, **kwargs)), strict=True):
                if own is not None:
                    own.copy_(new)


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor):
    return tensor.untyped_storage()._cdata


def capture(step):
    """Record ``step`` once; returns its replay."""
    tape = Tape()
    with tape:
        step()
    return tape.replay
