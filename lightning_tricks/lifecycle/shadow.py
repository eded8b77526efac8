"""A second value for each of some of a module's tensors, and its exchange with the first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import partial

import torch
from torch import Tensor, nn

from lightning_tricks.core.select import clean_name
from lightning_tricks.core.tensors import alone, copy_, holders, lerp_, local, pieces, swap_
from lightning_tricks.lifecycle.grouped import Group, grouped
from lightning_tricks.lifecycle.slots import Slot
from lightning_tricks.lifecycle.storage import shadow_dtype

__all__ = ["Shadows"]


class Shadows:
    """Shadows of the tensors in some slots, and which of the two sets the module holds.

    Attributes:
        shown: Whether the module holds the shadows' values, and the live ones are kept here.
        fresh: The names of those that began with live values.
    """

    def __init__(
        self,
        slots: Mapping[str, Slot],
        *,
        dtype: torch.dtype | None,
        device: str | None,
        values: Mapping[str, Tensor] | None = None,
        agree: Callable[[list[bool]], list[bool]] = list,
    ) -> None:
        """Begin with ``values``, and where there is none, with the live tensors.

        A frozen tensor gets a shadow only when it is opened, or if its value is another.

        Args:
            slots: What to shadow.
            dtype: As :func:`~lightning_tricks.lifecycle.storage.shadow_dtype` takes it.
            device: Where to keep shadows; ``None`` for each beside its live tensor.
            values: Earlier shadows, by any of their names.
            agree: Returns of each answer whether it is yes in any of the processes that hold parts.
        """
        self._agree = agree
        self.shown: bool = False
        self.fresh: list[str] = []
        self._dtype, self._device = dtype, device
        self._slots: list[Slot] = []
        self._frozen: list[tuple[Tensor, Slot]] = []
        self._shadows: list[Tensor] = []
        self._groups: list[Group] | None = None
        # Where live values are while the shadows are shown: beside them; in memory that the module has left
        # for that of the shadow; and piece by piece in the memory of the shadow.
        self._stash: dict[int, Tensor] = {}
        self._left: dict[int, Tensor] = {}
        self._exchanged: list[tuple[int, int]] = []
        known = values or {}
        found = [
            next((known[alias] for alias in slot.names if alias in known), None) for slot in slots.values()
        ]
        others = [
            v is not None and _differ(v, slot.tensor) for slot, v in zip(slots.values(), found, strict=True)
        ]
        for (name, slot), value, other in zip(slots.items(), found, agree(others), strict=True):
            if slot.moves or other:
                self._add(slot, value)
                self.fresh += [name] if value is None else []
            else:
                self._frozen.append((slot.held, slot))

    def __len__(self) -> int:
        return len(self._slots)

    def _add(self, slot: Slot, value: Tensor | None) -> None:
        live = slot.tensor
        dtype = live.dtype if slot.estimated else shadow_dtype(live.dtype, self._dtype)
        shadow = torch.empty_like(live, dtype=dtype, device=self._device or live.device)
        self._shadows.append(shadow.copy_(live if value is None else value))
        self._slots.append(slot)
        self._groups = None

    def join_opened(self) -> None:
        """Begin shadows of what was frozen and is open now; to be called before it moves."""
        opened = [slot for tensor, slot in self._frozen if tensor.requires_grad]
        if opened:
            self._frozen = [pair for pair in self._frozen if pair[1] not in opened]
        for slot in opened:
            self._add(slot, None)

    def place(self) -> None:
        """Move each shadow to where it belongs, after the live tensors may have moved."""
        for index, slot in enumerate(self._slots):
            device = self._device or slot.tensor.device
            self._shadows[index] = self._shadows[index].to(device)
        self._groups = None

    def lerp_(self, share: float | Tensor) -> None:
        """Move all shadows towards the live tensors by ``share`` of the way; a tensor stays on its device."""
        for shadows, live in self.lists():
            lerp_(shadows, live, share)

    def groups(self) -> list[Group]:
        """Return those that are averaged in lists of one type and device each, with their live tensors."""
        if self._groups is None or not all(group.stands() for group in self._groups):
            self._groups = grouped(self.averaged())
        return self._groups

    def lists(self) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
        """Yield shadows with the live tensors in the same order, in lists of one type and device each.

        Live tensors that are on another device than their shadows come as copies.
        """
        for group in self.groups():
            yield group.shadows, group.live()

    def pairs(self) -> Iterator[tuple[Slot, Tensor]]:
        """Return the slots with their shadows."""
        return zip(self._slots, self._shadows, strict=True)

    def averaged(self) -> Iterator[tuple[Slot, Tensor]]:
        """Return those that are averaged, and not estimated."""
        return (pair for pair in self.pairs() if not pair[0].estimated)

    def give_(self) -> None:
        """Put the shadows' values into the live tensors that training changes, for good."""
        moving = [(slot.tensor, shadow) for slot, shadow in self.pairs() if slot.moves]
        copy_([live for live, _ in moving], [shadow for _, shadow in moving])

    def take_estimates(self) -> None:
        """Keep what the module holds now of the tensors that are estimated, while the shadows are shown."""
        for index, (slot, shadow) in enumerate(self.pairs()):
            if slot.estimated and index in self._stash:  # else it was exchanged, and comes with the way back
                shadow.copy_(slot.tensor)

    def show(self, *, keep: bool = False) -> None:
        """Put the shadows' values into the module.

        A weight and its shadow of one type change places: by their addresses, where that is safe
        (:func:`~lightning_tricks.core.tensors.alone`), else piece by piece, with 16 MiB of scratch. Of a
        weight of another type a copy is kept beside it. Autograd does not notice a change of address: a graph
        that was built before is right after :meth:`hide`, but not between.

        Args:
            keep: Whether the shadows stay as they are and the live values are kept on the CPU.
        """
        if keep:
            self._stash = {i: slot.tensor.to("cpu", copy=True) for i, slot in enumerate(self._slots)}
            self.shown = True
            self._fill(dict(enumerate(self._shadows)))
            return
        self.shown = True  # from here on an interruption can be taken back
        for index, (slot, shadow) in enumerate(self.pairs()):
            live = slot.owner[slot.key]
            alike = live.shape == shadow.shape and live.stride() == shadow.stride()
            if live.dtype is not shadow.dtype:
                self._stash[index] = slot.tensor.clone()
                copy_([slot.tensor], [shadow])
            elif alike and shadow.is_cpu and alone(live):
                self._left[index] = live.data
                live.data = shadow
            else:
                for number, pair in enumerate(pieces(slot.tensor, shadow)):
                    swap_(*pair, partial(self._exchanged.append, (index, number)))

    def _fill(self, values: Mapping[int, Tensor]) -> None:
        copy_([self._slots[index].tensor for index in values], [*values.values()])

    def hide(self) -> None:
        """Give the module its live values back, if it does not hold them."""
        if not self.shown:
            return
        for index, left in self._left.items():
            slot, shadow = self._slots[index], self._shadows[index]
            held = slot.owner[slot.key]
            place = held.data_ptr()
            if place == shadow.data_ptr() and holders(held) == 2:
                held.data = left
            elif place == shadow.data_ptr():
                # Somebody has taken a view of it, and will look for the live weight there: the shadow goes to
                # the memory of this, and then both are as after an exchange of values.
                count = len(list(pieces(slot.tensor, left)))
                self._exchanged += [(index, number) for number in range(count)]
                shadow.data = left
            elif shadow.data_ptr() != left.data_ptr() != place:  # somebody gave it other memory
                copy_([shadow, slot.tensor], [slot.tensor, left])
        self._left.clear()
        # Backwards, because tensors that share memory were shown one after the other.
        while self._exchanged:
            index, number = self._exchanged[-1]
            pair = pieces(self._slots[index].tensor, self._shadows[index])[number]
            swap_(*pair, self._exchanged.pop)
        self._fill(self._stash)
        self._stash, self.shown = {}, False

    def untouched(self) -> bool:
        """Return whether the parameters hold what ``show(keep=True)`` put in; buffers may hold anything."""
        return all(
            _holds(self._slots[index], self._shadows[index].to(live.dtype))
            for index, live in self._stash.items()
        )

    @contextmanager
    def hidden(self) -> Iterator[None]:
        """Give the live values back within the context, and then again whatever the module held."""
        if not self.shown:
            yield
            return
        # What has changed places goes with the shadow and comes back with it.
        held = {index: self._slots[index].tensor.clone() for index in self._stash}
        keep = len(self._stash) == len(self)
        self.hide()
        try:
            yield
        finally:
            self.show(keep=keep)
            self._fill(held)

    def sets(
        self, live: dict[str, Tensor], average: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the state dicts of the live weights and of the average.

        Args:
            live: The module's, with the live values of whatever else is averaged.
            average: The module's, with the averages of those. While the shadows are shown, it holds theirs
                already.
        """
        if self.shown:
            apart = {**self._stash, **self._left}
            kept = [apart.get(index, shadow) for index, shadow in enumerate(self._shadows)]
            return self._replaced(live, kept), average
        return live, self._replaced(average, [shadow.to(slot.tensor.dtype) for slot, shadow in self.pairs()])

    def named(self) -> dict[str, Tensor]:
        """Return the shadows by all their clean names, whichever set the module holds."""
        exchanged = {index for index, _ in self._exchanged}
        return {
            name: slot.tensor if index in exchanged else self._shadows[index]
            for index, slot in enumerate(self._slots)
            for name in slot.names
        }

    def _replaced(self, state: dict[str, Tensor], values: list[Tensor]) -> dict[str, Tensor]:
        named = {name: value for slot, value in zip(self._slots, values, strict=True) for name in slot.names}
        result = copy(state)  # with the version numbers that torch attaches
        for key in result:
            result[key] = named.get(clean_name(key), result[key])
        return result

    def beyond(self) -> dict[str, Tensor]:
        """Return the shadows that a state dict does not hold to the bit, by first name.

        They are those of another type than their tensor, and those in whose place the module holds
        something else by now.
        """
        pairs = list(self.pairs())
        beyond = self._agree(
            [
                shadow.dtype != slot.tensor.dtype or (index in self._stash and _differ(shadow, slot.tensor))
                for index, (slot, shadow) in enumerate(pairs)
            ]
        )
        return {slot.names[0]: shadow for (slot, shadow), wanted in zip(pairs, beyond, strict=True) if wanted}


def _differ(first: Tensor, second: Tensor) -> bool:
    return not torch.equal(first.to(second), second)


def _holds(slot: Slot, value: Tensor) -> bool:
    held = slot.owner.get(slot.key)
    if held is None or local(held).shape != value.shape:
        return False
    if not isinstance(held, nn.Parameter):
        return True
    # Not ``torch.equal``, because an average that has diverged holds NaN.
    return torch.allclose(slot.tensor, value.to(slot.tensor), rtol=0.0, atol=0.0, equal_nan=True)
