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

from lightning_tricks.fusion.methods import Evaluate, FusionMethod, TensorwiseMethod
from lightning_tricks.fusion.numbers import check_numbers, check_variance, mixes
from lightning_tricks.fusion.plan import Step
from lightning_tricks.fusion.probe import Probe, informed
from lightning_tricks.fusion.slicing import Budget, Effort, Slicing
from lightning_tricks.lifecycle.stored import Memory

__all__ = ["Progress", "Write", "fused_whole", "run", "sums", "write_whole"]

Write = Callable[[tuple[str, ...], int, Tensor], None]
"""Takes the names of a tensor, the index of an entry in it, and entries from there on, flat."""
Progress = Callable[[int], None]
"""Is told of bytes that have been read and done with; in one thread at a time."""


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
        ValueError: If a tensor that is to be combined is not finite, or a variance falls below 0; names it.
        OSError: If a file cannot be read or written.
    """
    slicing = Slicing.of(method, effort)
    budget = Budget(slicing.budget(steps))
    tasks = iter([task for step in steps for task in _tasks(step, slicing.entries(step))])
    lock, stop = threading.Lock(), threading.Event()

    def work() -> None:
        memories = [Memory() for _ in labels]
        while not stop.is_set():
            with lock:
                if (task := next(tasks, None)) is None:
                    return
                need = (task.stop - task.start) * slicing.per_entry(task.step)
                budget.take(need)
            try:
                with torch.no_grad():  # a setting of the thread
                    task.do(method, write, labels, memories)
            except BaseException:
                stop.set()
                raise
            finally:
                if need * effort.threads > budget.total:
                    memories = [Memory() for _ in labels]  # lest much stays taken beside what others take
                budget.give_back(need)
            with lock:
                progress(task.read)

    with _one_thread_each(), ThreadPoolExecutor(effort.threads, "fusion") as pool:
        try:
            for done in [pool.submit(work) for _ in range(effort.threads)]:
                done.result()
        finally:
            stop.set()


def sums(told: Callable[[int, int], None] | None, total: int) -> Progress:
    """Return what tells ``told`` how much of ``total`` is done, by how much more is."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        if told is not None:
            told(done, total)

    return add


def fused_whole(
    steps: Sequence[Step],
    method: FusionMethod,
    *,
    evaluate: Evaluate | None,
    probe: Probe | None,
    progress: Progress,
) -> dict[str, Tensor]:
    """Return what a method that needs models as wholes, in memory, makes of what all of them have.

    Args:
        steps: What is to be done.
        method: Fuses.
        evaluate: What the method evaluates candidates by, if it does.
        probe: What it looks at, if it does.
        progress: Is told of what is read.

    Raises:
        ValueError: As :meth:`FusionMethod.fuse` and :func:`~lightning_tricks.fusion.probe.informed`, or if a
            variance falls below 0.
    """
    alike = [step for step in steps if step.action != "lone"]
    models: list[dict[str, Tensor]] = [{} for _ in alike[0].tensors] if alike else []
    for step in alike:
        for model, stored in zip(models, step.tensors, strict=True):
            model |= dict.fromkeys(step.names, stored.read().view(stored.shape))
            progress(stored.nbytes if stored in step.read else 0)
    fused = informed(method, models, probe).fuse(models, evaluate) if alike else {}
    for step in alike:
        name = step.names[0]
        check_variance(name, fused[name], [model[name] for model in models], method)
    return fused


def write_whole(steps: Sequence[Step], fused: dict[str, Tensor], write: Write) -> None:
    """Give each tensor of the result to ``write``: those of ``fused``, and those that one model alone has."""
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

    def do(
        self, method: TensorwiseMethod, write: Write, labels: Sequence[str], memories: Sequence[Memory]
    ) -> None:
        state, part = self.state, (self.start, self.stop)
        tensors = self._tensors(part, memories)
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
            self._combine(part, self._tensors(part, memories), method, write, labels)

    def _tensors(self, part: tuple[int, int], memories: Sequence[Memory]) -> list[Tensor]:
        return [tensor.read(*part, memory) for tensor, memory in zip(self.step.read, memories, strict=False)]

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
        check_variance(name, fused, tensors, method)
        write(self.step.names, part[0], fused.reshape(-1))


def _tasks(step: Step, entries: int) -> list[_Task]:
    numel = step.stored.numel
    # An empty tensor, too, is one slice: the method sees it, as in memory.
    cuts = [*range(0, numel, entries), numel] if numel else [0, 0]
    state = _State(left=len(cuts) - 1)
    return [_Task(step, state, start, stop) for start, stop in pairwise(cuts)]
