"""Models fused tensor by tensor: read in slices, combined, and given away, whatever the size of the models.

An entry of the result depends neither on the number of threads nor on the memory that is allowed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from lightning_tricks.core import checks
from lightning_tricks.fusion.methods import Evaluate, FusionMethod, TensorwiseMethod
from lightning_tricks.fusion.numbers import check_numbers, mixes
from lightning_tricks.fusion.plan import Step
from lightning_tricks.fusion.probe import Probe, informed

__all__ = ["Effort", "Progress", "Slicing", "Write", "run", "run_whole"]

Write = Callable[[tuple[str, ...], int, Tensor], None]
"""Takes the names of a tensor, the index of an entry in it, and entries from there on, flat."""
Progress = Callable[[int], None]
"""Is told of bytes that have been read and done with; in one thread at a time."""

_SLICE = 8 << 20  # Bytes of memory for one slice: stays in the cache, and Python has little to do.
_USUAL = 256 << 20  # Bytes that methods which need whole tensors may take together, or one alone if larger.
_MULTIPLE = 1024  # Entries: cut elsewhere, vectors of numbers would be split, which might round otherwise.


@dataclass(frozen=True)
class Effort:
    """How much a fusion may use.

    Args:
        max_memory: Bytes for the tensors that are worked on, at least a few thousand entries of each model;
            ``None`` for a few slices or, if the method needs tensors whole, a few of those.
        threads: How many slices or tensors are worked on at a time.
    """

    max_memory: int | None = None
    threads: int = 2

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.max_memory is not None:
            checks.whole("max_memory", self.max_memory, 1)
        checks.whole("threads", self.threads, 1)


@dataclass(frozen=True)
class Slicing:
    """How tensors are cut for a method, within the memory that is allowed.

    Attributes:
        entrywise: Whether the method can do with slices.
        effort: What is allowed.
    """

    entrywise: bool
    effort: Effort

    def entries(self, step: Step) -> int:
        """Return how many entries of the tensors of ``step`` are worked on at a time.

        Raises:
            ValueError: If that is more than is allowed; says how much it must be.
        """
        whole = step.stored.numel
        allowed = self.effort.max_memory
        least = whole
        if all(tensor.sliceable for tensor in step.read) and (self.entrywise or step.action != "fuse"):
            share = _SLICE if allowed is None else min(_SLICE, allowed // self.effort.threads)
            least = min(whole, _MULTIPLE)
            whole = min(whole, max(_MULTIPLE, share // step.memory_per_entry // _MULTIPLE * _MULTIPLE))
        if allowed is not None and whole * step.memory_per_entry > allowed:
            raise ValueError(
                f"max_memory must be at least {least * step.memory_per_entry} bytes for {step.names[0]}, of "
                f"which {least} entries of each model are needed at a time, got {allowed}"
            )
        return whole

    def bytes(self, step: Step) -> int:
        """Return how much memory the work on ``step`` needs at a time."""
        return self.entries(step) * step.memory_per_entry

    def memory(self, steps: Sequence[Step]) -> int:
        """Return how much memory the work on all ``steps`` needs at most."""
        needs = sorted((self.bytes(step) for step in steps), reverse=True)
        return min(sum(needs[: self.effort.threads]), self.budget(steps))

    def budget(self, steps: Sequence[Step]) -> int:
        """Return how much memory may be in use at a time."""
        largest = max((self.bytes(step) for step in steps), default=0)
        return self.effort.max_memory or max(_USUAL, largest)


def run(
    steps: Sequence[Step],
    method: TensorwiseMethod,
    write: Write,
    *,
    labels: Sequence[str],
    effort: Effort,
    progress: Progress,
) -> None:
    """Do all ``steps`` and give what comes out to ``write``, by several threads at a time.

    Args:
        steps: What is to be done.
        method: Combines tensors, or slices of them if it is entrywise.
        write: Gets each entry once, except where slices turn out to differ only after equal ones.
        labels: What to call the models.
        effort: What may be used.
        progress: Is told of what is done.

    Raises:
        ValueError: If a tensor that is to be combined is not finite; names it.
        OSError: If a file cannot be read or written.
    """
    slicing = Slicing(method.entrywise, effort)
    budget = _Budget(slicing.budget(steps))
    tasks = iter([task for step in steps for task in _tasks(step, slicing.entries(step))])
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        while not stop.is_set():
            with lock:
                if (task := next(tasks, None)) is None:
                    return
                need = (task.stop - task.start) * task.step.memory_per_entry
                budget.take(need)
            try:
                with torch.no_grad():  # a setting of the thread
                    task.do(method, write, labels)
            except BaseException:
                stop.set()
                raise
            finally:
                budget.give_back(need)
            with lock:
                progress(task.read)

    with _one_thread_each(), ThreadPoolExecutor(effort.threads, "fusion") as pool:
        try:
            for done in [pool.submit(work) for _ in range(effort.threads)]:
                done.result()
        finally:
            stop.set()


def run_whole(
    steps: Sequence[Step],
    method: FusionMethod,
    write: Write,
    *,
    evaluate: Evaluate | None,
    probe: Probe | None,
    progress: Progress,
) -> None:
    """Do all ``steps`` with a method that needs models as wholes, in memory.

    Args:
        steps: What is to be done.
        method: Fuses what all models have.
        write: Gets each tensor of the result.
        evaluate: What the method evaluates candidates by, if it does.
        probe: What it looks at, if it does.
        progress: Is told of what is read.

    Raises:
        ValueError: As :meth:`FusionMethod.fuse` and :func:`~lightning_tricks.fusion.probe.informed`.
    """
    alike = [step for step in steps if step.action != "lone"]
    models: list[dict[str, Tensor]] = [{} for _ in alike[0].tensors] if alike else []
    for step in alike:
        for model, stored in zip(models, step.tensors, strict=True):
            model |= dict.fromkeys(step.names, stored.read().view(stored.shape))
            progress(stored.nbytes if stored in step.read else 0)
    fused = informed(method, models, probe).fuse(models, evaluate) if alike else {}
    for step in steps:
        lone = step.action == "lone"
        write(step.names, 0, step.stored.read() if lone else fused[step.names[0]].reshape(-1))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let threads that start now compute alone: ours share the work already."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Budget:
    """Memory that is in use, of what may be."""

    def __init__(self, total: int) -> None:
        self._left = total
        self._changed = threading.Condition()

    def take(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count

    def give_back(self, count: int) -> None:
        with self._changed:
            self._left += count
            self._changed.notify_all()


@dataclass
class _State:
    """What the slices of one tensor have in common.

    Attributes:
        left: How many are not done.
        differs: Whether the models have been seen to differ in one of them.
        equal: The slices that were taken as they are, while all were equal.
    """

    left: int
    differs: bool = False
    equal: list[tuple[int, int]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _Task:
    """A slice of the tensors of a step."""

    step: Step
    state: _State
    start: int
    stop: int

    @property
    def read(self) -> int:
        """The bytes that are read for it."""
        return (self.stop - self.start) * self.step.stored.dtype.itemsize * len(self.step.read)

    def do(self, method: TensorwiseMethod, write: Write, labels: Sequence[str]) -> None:
        state, part = self.state, (self.start, self.stop)
        tensors = self._tensors(part)
        if self.step.action != "fuse":
            write(self.step.names, self.start, tensors[0])
            return
        if state.differs or mixes(tensors):
            state.differs = True
            self._combine(part, tensors, method, write, labels)
        else:
            state.equal.append(part)
            write(self.step.names, self.start, tensors[-1])
        del tensors
        with state.lock:
            state.left -= 1
            # Tensors that differ are combined as wholes, also in the slices that were equal.
            late = state.equal if state.left == 0 and state.differs else []
        for part in late:
            self._combine(part, self._tensors(part), method, write, labels)

    def _tensors(self, part: tuple[int, int]) -> list[Tensor]:
        return [tensor.read(*part) for tensor in self.step.read]

    def _combine(
        self,
        part: tuple[int, int],
        tensors: list[Tensor],
        method: TensorwiseMethod,
        write: Write,
        labels: Sequence[str],
    ) -> None:
        name, stored = self.step.names[0], self.step.stored
        check_numbers(name, tensors, labels)
        if part == (0, stored.numel):
            tensors = [tensor.view(stored.shape) for tensor in tensors]
        fused = method.combined(name, tensors)
        if fused.shape != tensors[0].shape or fused.dtype != stored.dtype:
            raise TypeError(
                f"combine of {method!r} must return a tensor of the shape and type of {name}, "
                f"{tuple(tensors[0].shape)} and {stored.dtype}, got {tuple(fused.shape)} and {fused.dtype}"
            )
        write(self.step.names, part[0], fused.reshape(-1))


def _tasks(step: Step, entries: int) -> list[_Task]:
    numel = step.stored.numel
    # An empty tensor, too, is one slice: the method sees it, as in memory.
    cuts = [*range(0, numel, entries), numel] if numel else [0, 0]
    state = _State(left=len(cuts) - 1)
    return [_Task(step, state, start, stop) for start, stop in pairwise(cuts)]
