"""Models in files or in memory become one, however large they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn

from lightning_tricks.fusion import output as outputs
from lightning_tricks.fusion.average import Average
from lightning_tricks.fusion.by_samples import BySamples
from lightning_tricks.fusion.engine import Write, fused_whole, run, sums, write_whole
from lightning_tricks.fusion.findings import listening
from lightning_tricks.fusion.methods import Evaluate, FusionMethod, TensorwiseMethod
from lightning_tricks.fusion.of_module import for_module
from lightning_tricks.fusion.plan import Matching, Step, others_of, planned
from lightning_tricks.fusion.probe import Probe, check_probe, needs_probe
from lightning_tricks.fusion.provenance import described, provenance
from lightning_tricks.fusion.slicing import Effort, Slicing
from lightning_tricks.lifecycle.opening import Readable, Reading
from lightning_tricks.lifecycle.stored import StoredModel

__all__ = ["Fusion", "Opened", "fuse"]

Progress = Callable[[int, int], None]
"""Is told of how many bytes have been read, and how many will be; by one thread at a time."""
_READING, _MATCHING, _EFFORT = Reading(), Matching(), Effort()


def fuse(  # noqa: PLR0913  # settings
    models: Sequence[Readable],
    method: FusionMethod = Average(),  # noqa: B008  # it is frozen, and cards show it as it stands here
    output: str | PathLike[str] | None = None,
    *,
    which: Literal["state_dict", "live", "average"] = "state_dict",
    prefix: str = "",
    allow_missing: bool = False,
    allow_pickle: bool = False,
    verify: bool = False,
    overwrite: bool = False,
    sha256: bool = False,
    max_memory: int | None = None,
    threads: int = 2,
    evaluate: Evaluate | None = None,
    probe: Probe | None = None,
    progress: Progress | None = None,
) -> dict[str, Any] | Path:
    """Fuse models by ``method`` and return the result, or write it to ``output`` and return the path.

    The models are read and the result is written tensor by tensor, large tensors in slices where the method
    is entrywise, so that memory stays small whatever the size of the models. The result depends neither on
    ``threads`` nor on ``max_memory``, to the bit, and equals that of ``method.fuse`` in memory. Integers and
    booleans come from the last model, tensors that are equal in all are taken as they are, and tied ones
    stay tied; names are those of the first model. Everything but values is checked before anything is
    written, and nothing is left behind if something fails.

    Args:
        models: At least one, in the order that the method wants: paths of Lightning checkpoints, of state
            dicts that ``torch.save`` wrote, of safetensors files or their index
            (``*.safetensors.index.json``), folders of distributed checkpoints; or state dicts and modules.
        method: How to fuse. Its base model, if it names one, is put before the others. One that is not
            tensorwise gets the models as wholes, in memory.
        output: Where to: ``*.ckpt``, a checkpoint that ``load_from_checkpoint`` takes, with the
            hyperparameters and all else of the first model's checkpoint that not only training needs; or
            ``*.safetensors``. How it came about stands in it under ``fusion``. ``None`` to return it.
        which: Of checkpoints with live and averaged weights, ``"live"`` or ``"average"``; ``"state_dict"``
            for those that ``load_state_dict`` would get.
        prefix: Names are compared without it, if they begin with it, such as ``"model."``.
        allow_missing: Whether a tensor may be missing in some models; it is then taken from the last that
            has it.
        allow_pickle: Whether files may hold more than tensors and plain values. Reading such a file can run
            any code that whoever wrote it chose: only for files that you trust.
        verify: Whether to compare the content of files with the checksums that ``torch.save`` writes into
            them, for which they are read once more; a bit that has changed goes unnoticed else.
        overwrite: Whether ``output`` may be there; never one of the models.
        sha256: Whether to write the SHA-256 of each file of the models down, for which it is read once more.
        max_memory: Bytes for the tensors that are worked on; ``None`` for some 512 MB at most, or for one
            tensor of each model where the method needs it whole and it is larger.
        threads: How many slices or tensors are worked on at a time.
        evaluate: Needed by methods that evaluate candidates; gets a state dict, returns a score, higher is
            better.
        probe: Needed by methods that look at data; these get the models as wholes, in memory.
        progress: Is told of how many bytes have been read, and how many will be.

    Returns:
        The state dict, if ``output`` is ``None``; else the path.

    Raises:
        FileExistsError: If ``output`` is there and may not be replaced.
        FileNotFoundError: If a model is not there.
        OSError: If a file cannot be read or written.
        ValueError: If a file is damaged or holds more than it may, the models do not fit one another or the
            method, an entry is not finite, ``output`` is one of the models, or ``evaluate`` or ``probe`` is
            missing or of no use.

    Example:
        >>> from torch import tensor
        >>> fuse([{"w": tensor([1.0, 2.0])}, {"w": tensor([3.0, 4.0])}])
        {'w': tensor([2., 3.])}
    """
    if isinstance(method, FusionMethod) and (method.objective or (None, None))[1] == "min":
        raise ValueError(
            f"mode must not be 'min' where evaluate returns a score, better the higher, got {method!r}: "
            "return the metric times -1"
        )
    target = None if output is None else Path(output)
    fusion = Fusion(
        models=models,
        method=method,
        reading=Reading(which, allow_pickle, verify),
        matching=Matching(prefix, allow_missing),
        effort=Effort(max_memory, threads),
        evaluate=evaluate,
        probe=probe,
    )
    with fusion.opened() as found:
        if target is None:
            return found.returned(progress)
        return found.written(target, progress, overwrite=overwrite, sha256=sha256)


@dataclass(frozen=True, kw_only=True)
class Fusion:
    """What is to be fused, and how; see :func:`fuse`.

    Args:
        models: Paths, state dicts, modules.
        method: How to fuse.
        reading: How files are read.
        matching: Which tensors belong together.
        effort: What may be used.
        evaluate: What a method evaluates candidates by, if it does.
        probe: What it looks at, if it does.
    """

    models: Sequence[Readable]
    method: FusionMethod = Average()  # noqa: RUF009  # it is frozen
    reading: Reading = _READING
    matching: Matching = _MATCHING
    effort: Effort = _EFFORT
    evaluate: Evaluate | None = None
    probe: Probe | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if isinstance(self.models, str | PathLike) or not isinstance(self.models, Sequence):
            raise TypeError(
                f"models must be a list of paths, state dicts or modules, got {self.models!r:.80}"
            )
        if not isinstance(self.method, FusionMethod):
            raise TypeError(f"method must be a FusionMethod such as Average(), got {self.method!r}")

    @contextmanager
    def opened(self) -> Iterator[Opened]:
        """Give the models, opened, and what becomes of each tensor; only names, shapes and types are read.

        Raises:
            FileNotFoundError: If a model is not there.
            ValueError: If the models do not fit one another or the method.
        """
        base = [] if self.method.base is None else [self.method.base]
        paths: list[Readable] = [*base, *self.models]
        with ExitStack() as stack:
            models = [
                self.reading.open(model, stack, label=f"model {index}") for index, model in enumerate(paths)
            ]
            own = self
            if isinstance(self.method, BySamples):
                own = replace(self, method=self.method.counted(models))
            if models:  # none at all has an error of its own
                own.method.check_count(len(models))
            steps = planned(models, self.matching)
            found = Opened(own, own._resolved(steps), models, steps, others_of(models, self.matching))
            found.slicing.memory(steps)  # says now if that is more than is allowed
            yield found

    def check_given(self) -> None:
        """Accept what is given to the method, if that is what it needs.

        Raises:
            TypeError: If it is something else.
            ValueError: If it lacks.
        """
        if self.method.objective is not None and self.evaluate is None:
            raise ValueError(f"evaluate must be given for {self.method!r}, got None")
        if self.evaluate is not None:
            if not callable(self.evaluate):
                raise TypeError(f"evaluate must be a function of a state dict, got {self.evaluate!r:.80}")
            if self.method.objective is None:
                raise ValueError(f"evaluate must be left out for {self.method!r}, which evaluates nothing")
        check_probe(self.method, self.probe)
        if self.probe is not None and not needs_probe(self.method):
            raise ValueError(f"probe must be left out for {self.method!r}, which looks at no data")

    def _resolved(self, steps: Sequence[Step]) -> FusionMethod:
        module = next((model for model in self.models if isinstance(model, nn.Module)), None)
        method = self.method if module is None else for_module(self.method, module)
        if not isinstance(method, TensorwiseMethod) or needs_probe(method):
            return method
        return method.resolved([name for step in steps if step.action == "fuse" for name in step.names])


@dataclass(frozen=True)
class Opened:
    """Models that are open for being fused.

    Attributes:
        fusion: How; the method knows what it asks of files.
        method: By which method, which knows all names.
        models: The models; a base comes first.
        steps: What becomes of each tensor.
        others: What the result's state dict holds beside tensors.
        found: What the method tells of its choice, once it has fused.
    """

    fusion: Fusion
    method: FusionMethod
    models: Sequence[StoredModel]
    steps: Sequence[Step]
    others: dict[str, Any]
    found: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def slicing(self) -> Slicing:
        """How tensors are cut."""
        return Slicing.of(self.method, self.fusion.effort)

    @property
    def memory(self) -> int:
        """Bytes of memory that the tensors which are worked on take at most."""
        if self._streams:
            return self.slicing.memory(self.steps)
        return sum(tensor.nbytes for step in self.steps for tensor in step.tensors)

    @property
    def bytes_read(self) -> int:
        """Bytes that are read, without what SHA-256 needs."""
        return sum(tensor.nbytes for step in self.steps for tensor in step.read)

    def returned(self, progress: Progress | None = None) -> dict[str, Any]:
        """Return the fused state dict."""
        self.fusion.check_given()
        whole = self._whole(told := sums(progress, self.bytes_read))
        result, write = outputs.in_memory(self.steps)
        self._run(write, told, whole)
        return outputs.in_order(self.models[0], {**result, **self.others})

    def written(
        self,
        output: Path,
        progress: Progress | None = None,
        *,
        overwrite: bool = False,
        sha256: bool = False,
    ) -> Path:
        """Write the fused model to ``output`` and return that; see :func:`fuse`."""
        self.fusion.check_given()
        outputs.check_output(output, self.models, self.steps, overwrite=overwrite)
        hashed = [path.stat().st_size for model in self.models for path in model.files if sha256]
        told = sums(progress, self.bytes_read + sum(hashed))
        whole = self._whole(told)
        with self._filled(output, told, sha256) as write:
            self._run(write, told, whole)
        return output

    def _filled(
        self, output: Path, told: Callable[[int], None], sha256: bool
    ) -> AbstractContextManager[Write]:
        digests = told if sha256 else None
        models = [described(model, digests) for model in self.models]
        about = provenance(self.fusion.method, models, self.found)
        if output.suffix == ".safetensors":
            return outputs.safetensors(output, self.steps, self.others, about)
        first, trusts = self.models[0], self.fusion.reading.allow_pickle
        return outputs.checkpoint(output, self.steps, self.others, about, first=first, allow_pickle=trusts)

    @property
    def _streams(self) -> bool:
        """Whether tensors are fused one by one."""
        return isinstance(self.method, TensorwiseMethod) and not needs_probe(self.method)

    def _whole(self, told: Callable[[int], None]) -> dict[str, Tensor] | None:
        """Return the fused tensors; ``None`` where they are fused as they are written."""
        if self._streams:
            return None
        evaluate, probe = self.fusion.evaluate, self.fusion.probe
        with listening(self.found):
            return fused_whole(self.steps, self.method, evaluate=evaluate, probe=probe, progress=told)

    def _run(self, write: Write, told: Callable[[int], None], whole: dict[str, Tensor] | None) -> None:
        if whole is not None:
            write_whole(self.steps, whole, write)
            return
        method, labels = cast("TensorwiseMethod", self.method), [model.label for model in self.models]
        run(self.steps, method, write, labels=labels, effort=self.fusion.effort, progress=told)
