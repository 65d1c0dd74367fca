"""An accelerator in pure Python: tensors on `DEVICE`, whose numbers lie in tensors on the CPU.

It refuses what CUDA refuses, which a CPU cannot show: tensors of two devices in one operation, numbers read as NumPy's,
and more memory than it has. It counts what CUDA makes the host wait for, and knows whether work may still be under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "simulated"


class _Backend(_DummyBackendModule):
    """What `torch.simulated` is."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        """Whatever forks the generators in this process asks every device for its own."""
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
DEVICE = torch.device(NAME, 0)

# Between devices by what they are for.
COPIES = {"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize"}
# They take a single number from the host, beside what is computed element by element.
TAKES_A_NUMBER = {"aten::fill_", "aten::fill", "aten::masked_fill", "aten::masked_fill_", "aten::_fused_adamw_"}
# Places may be named on the host.
INDEXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Their results, or their sizes, are known to the host only when all before them is done.
WAITED_FOR = {
    *("aten::_local_scalar_dense", "aten::equal", "aten::nonzero", "aten::masked_select", "aten::is_nonzero"),
    *("aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::_linalg_eigh", "aten::_linalg_svd"),
}


class Accelerator:
    """`waits`: each time that the host had to wait, by the operation. `busy`: whether work may be under way.
    `memory`: its bytes, None for no end of them."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.busy = False
        self.memory: int | None = None
        self._held: dict[StorageWeakRef, int] = {}
        self._failure: tuple[type[RuntimeError], str] | None = None

    @property
    def held(self) -> int:
        """Bytes of tensors that are still referred to."""
        self._held = {storage: size for storage, size in self._held.items() if not storage.expired()}
        return sum(self._held.values())

    def synchronize(self, *_: object) -> None:
        self.busy = False

    def empty_cache(self) -> None:
        self.waits.append("empty_cache")

    def wait(self, operation: str) -> None:
        self.waits.append(operation)
        self.synchronize()

    def give(self, made: Tensor) -> None:
        """Memory to a tensor that is new. Raises torch.OutOfMemoryError, as CUDA does."""
        self._held[StorageWeakRef(made.untyped_storage())] = made.untyped_storage().nbytes()
        if self.memory is not None and self.held > self.memory:
            self.fail(torch.OutOfMemoryError, "CUDA out of memory. (Simulated.)")

    def fail(self, kind: type[RuntimeError], sentence: str) -> None:
        """Raise it; of what computes gradients at the end of that, since torch's own nodes let no error of Python's
        through where a device is involved."""
        if torch._C._current_graph_task_id() == -1:
            raise kind(sentence)
        self._failure = self._failure or (kind, sentence)

    def ended(self) -> None:
        """Raises what has failed in a backward pass."""
        if self._failure is not None:
            (kind, sentence), self._failure = self._failure, None
            raise kind(sentence)


accelerator = Accelerator()


class Simulated(Tensor):
    """A tensor on the device. What it holds is laid out in memory as it is itself."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> Simulated:
        made: Simulated = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=DEVICE,
        )
        made.held = held
        return made

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Simulated({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


def _run(operation: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`operation` on the host, where its arguments may meet on a device."""
    name = operation._schema.name
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    _refuse_two_devices(operation, name, given, args)
    target = kwargs.get("device")
    to_host = target is not None and target.type == "cpu"
    inner = {**kwargs, **({} if target is None else {"device": torch.device("cpu")})}
    found = _host_has(operation)(*tree_map(_inside, args), **tree_map(_inside, inner))
    blocking = not (kwargs.get("non_blocking") or any(each is True for each in args[2:3]))
    crosses = to_host or (name in COPIES and any(not isinstance(each, Simulated) for each in given))
    if name in WAITED_FOR or (crosses and blocking) or (name in INDEXED and _counts_places(args)):
        accelerator.wait(name)
    else:
        accelerator.busy = True
    if to_host:
        return found
    known = {StorageWeakRef(each.held.untyped_storage()) for each in given if isinstance(each, Simulated)}
    for each in tree_leaves(found):
        if isinstance(each, Tensor) and StorageWeakRef(each.untyped_storage()) not in known:
            accelerator.give(each)
    outside = tree_map(lambda each: Simulated(each) if isinstance(each, Tensor) else each, found)
    return return_and_correct_aliasing(operation, args, dict(kwargs), outside)


def _refuse_two_devices(operation: Any, name: str, given: Sequence[Tensor], args: Sequence[Any]) -> None:
    on_host = [each for each in given if not isinstance(each, Simulated)]
    if not on_host or len(on_host) == len(given) or name in COPIES:
        return
    if name in INDEXED:
        places = [each for each in args[1] if each is not None]
        on_host = [each for each in on_host if not any(each is place for place in places) and each.ndim]
    elif torch.Tag.pointwise in operation.tags or name in TAKES_A_NUMBER or name.startswith("aten::_foreach"):
        on_host = [each for each in on_host if each.ndim]
    if on_host:
        sentence = f"Expected all tensors to be on the same device, but found at least two devices, {DEVICE} and cpu!"
        accelerator.fail(RuntimeError, f"{sentence} (when checking arguments of {name})")


def _host_has(operation: Any) -> Any:
    """What computes the same on the CPU, which does not count integers."""
    if operation._schema.name != "aten::histc":
        return operation
    return lambda numbers, *args: operation(numbers.float(), *args).to(numbers.dtype)


def _counts_places(args: Sequence[Any]) -> bool:
    """Whether places are named by a mask that is on the device."""
    return any(isinstance(each, Simulated) and each.dtype in (torch.bool, torch.uint8) for each in args[1])


def _inside(value: Any) -> Any:
    return value.held if isinstance(value, Simulated) else value


def _whatever(operation: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(operation, args, kwargs)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    return _run(torch.ops.aten.copy_.default, (target, source, non_blocking), {})


# What has no tensor to go by, such as torch.zeros(..., device=DEVICE), and where torch passes Python by, as in
# torch.tensor.
_LIBRARIES = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
_LIBRARIES[0].fallback(_whatever, "PrivateUse1")
_LIBRARIES[1].impl("_copy_from", _copy_from, "PrivateUse1")
# torch makes them in a tensor without elements, which grows.
for _grown in ("arange", "arange.start", "arange.start_step", "linspace", "eye", "randperm"):
    _name, _, _overload = _grown.partition(".")
    _operation = getattr(getattr(torch.ops.aten, _name), _overload or "default")
    _LIBRARIES[1].impl(_grown, partial(_whatever, _operation), "PrivateUse1")


@contextmanager
def simulated_cuda(monkeypatch: Any) -> Iterator[Accelerator]:
    """Inside, `torch.cuda` is about the simulated device, which has no end of memory at first."""
    usual = torch.autograd._engine_run_backward

    def backward(*args: Any, **kwargs: Any) -> Any:
        found = usual(*args, **kwargs)
        accelerator.ended()
        return found

    accelerator.__init__()  # type: ignore[misc]
    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd, "_engine_run_backward", backward)
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "synchronize", accelerator.synchronize)
        patch.setattr(torch.cuda, "empty_cache", accelerator.empty_cache)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda *_: accelerator.held)
        yield accelerator
