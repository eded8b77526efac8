"""The parts of a docstring of the house's form, as Markdown."""

from __future__ import annotations

import re
from dataclasses import dataclass
from inspect import cleandoc

__all__ = ["HEADINGS", "Parts", "markdown_of", "parts_of"]

HEADINGS = ("When", "Changes", "Logs", "Saves", "Cost", "Use")
"""Of the bullets of a card, in this order; the last also says when not."""

_SECTIONS = ("Args", "Attributes", "Example", "Raises", "Returns", "Yields")
_ROLE = re.compile(r":\w+:`~?([^`]+)`")
# To what stands in the file, for those who read that.
_POINTER = re.compile(rf"(?:(?:equation|formula)s? above)?:? ?(?:{_ROLE.pattern}(?:, )?)*")


@dataclass(frozen=True)
class Parts:
    """What a docstring says.

    Attributes:
        summary: Its first line.
        text: The paragraphs after that.
        bullets: By heading; what is not said after "Use" but after "not" in it, stands under "Not".
        settings: By name; arguments or attributes.
        example: With its prompts; empty if there is none.
    """

    summary: str
    text: str
    bullets: dict[str, str]
    settings: dict[str, str]
    example: str

    @property
    def sentence(self) -> str:
        """What it is in a sentence or two: the summary, and the paragraph after it."""
        return " ".join(f"{self.summary} {self.text.partition(_GAP)[0]}".split())


_GAP = "\n\n"


def parts_of(docstring: str) -> Parts:
    """Return the parts of ``docstring``.

    Example:
        >>> parts = parts_of('''Do it (:func:`do`).
        ...
        ... * **Use** ``x`` often; **not** y.
        ...
        ... Args:
        ...     a: One.
        ... ''')
        >>> parts.summary, parts.bullets, parts.settings
        ('Do it.', {'Use': '`x` often', 'Not': 'y.'}, {'a': 'One.'})
    """
    body, sections = _divided(cleandoc(docstring))
    head, _, rest = body.partition("* **")
    summary, _, text = head.partition(_GAP)
    bullets = {}
    for bullet in re.split(r"^\* \*\*", rest, flags=re.MULTILINE) if rest else ():
        heading, _, said = bullet.partition("** ")
        bullets[heading] = _joined(said)
    if (use := re.split(r"[;.,]? \*\*[nN]ot\*\* ", bullets.get("Use", ""), maxsplit=1))[1:]:
        bullets |= {"Use": use[0], "Not": use[1]}
    return Parts(
        summary=_joined(re.sub(r" \(([^()]*)\)", _unpointed, summary)),
        text=markdown_of(text).strip(),
        bullets=bullets,
        settings=_entries(sections.get("Args", "") or sections.get("Attributes", "")),
        example=markdown_of(cleandoc(sections.get("Example", ""))),
    )


def _divided(text: str) -> tuple[str, dict[str, str]]:
    body, *rest = re.split(rf"^({'|'.join(_SECTIONS)}):\n", text, flags=re.MULTILINE)
    return body, dict(zip(rest[::2], rest[1::2], strict=True))


def _entries(section: str) -> dict[str, str]:
    found = re.split(r"^(\w+): ", cleandoc("\n" + section), flags=re.MULTILINE)
    return {name: _joined(said) for name, said in zip(found[1::2], found[2::2], strict=True)}


def _unpointed(found: re.Match[str]) -> str:
    return "" if found[1] and _POINTER.fullmatch(found[1]) else found[0]


def _joined(text: str) -> str:
    return " ".join(markdown_of(text).split())


def markdown_of(text: str) -> str:
    """Return ``text``, which is reStructuredText of the simplest kind, as Markdown.

    Example:
        >>> markdown_of(":func:`~lightning_tricks.fuse` takes ``threads``::")
        '`fuse` takes `threads`:'
    """
    text = _ROLE.sub(lambda role: f"`{role[1].rpartition('.')[2]}`", text)
    return re.sub(r"::$", ":", text.replace("``", "`"), flags=re.MULTILINE)
