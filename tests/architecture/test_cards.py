"""What every technique looks like: its decorators, its card, its file, its place in the root."""

import ast
import re

import pytest

from tests.architecture.sources import PACKAGE, Source, last_name, techniques

DECORATORS = {"final": set(), "dataclass": {"eq=False", "kw_only=True"}}
HEADINGS = ["When", "Changes", "Logs", "Saves", "Cost", "Use"]


def undecorated(source: Source) -> list[str]:
    """Report techniques that are not final, or whose settings are not keywords only."""
    return [
        source.at(technique, f"{technique.name} lacks @{name} {' '.join(sorted(settings))}".rstrip())
        for technique in techniques(source)
        for name, settings in DECORATORS.items()
        if not any(
            last_name(decorator) == name and settings <= _settings(decorator)
            for decorator in technique.decorator_list
        )
    ]


def _settings(decorator: ast.expr) -> set[str]:
    return {ast.unparse(keyword) for keyword in getattr(decorator, "keywords", [])}


def shown(source: Source) -> list[ast.ClassDef]:
    """Return the techniques that users add, without those that a mixin, which has the card, brings along."""
    return [technique for technique in techniques(source) if not technique.name.startswith("_")]


def incomplete_cards(source: Source) -> list[str]:
    """Report public techniques whose class docstring lacks a heading, or has them in another order."""
    found = []
    for technique in shown(source):
        card = ast.get_docstring(technique) or ""
        headings = re.findall(r"^\* \*\*(\w+)\*\* \S", card, re.MULTILINE)
        if headings != HEADINGS:
            complaint = f"the card of {technique.name} has {headings}, not {HEADINGS}"
            found.append(source.at(technique, complaint))
    return found


def cards_without_example(source: Source) -> list[str]:
    """Report public techniques whose card shows no example that can be run."""
    return [
        source.at(technique, f"the card of {technique.name} has no example")
        for technique in shown(source)
        if ">>> " not in (ast.get_docstring(technique) or "")
    ]


def unsourced(source: Source) -> list[str]:
    """Report files of public techniques that do not say where the technique comes from."""
    text = ast.get_docstring(source.tree) or ""
    return [
        source.at(technique, f"the file of {technique.name} names no reference")
        for technique in shown(source)
        if not re.search(r"^References?: *\S", text, re.MULTILINE)
    ]


def crowded(source: Source) -> list[str]:
    """Report techniques that share their file with another."""
    return [
        source.at(technique, f"{technique.name} is not the only technique of its file")
        for technique in list(techniques(source))[1:]
    ]


def out_of_order(source: Source) -> list[str]:
    """Report functions that come after the technique: a file is formula, functions, class."""
    first = min((technique.lineno for technique in techniques(source)), default=None)
    return [
        source.at(node, f"{node.name} comes after the class")
        for node in source.tree.body
        if isinstance(node, ast.FunctionDef) and first is not None and node.lineno > first
    ]


def hidden(source: Source, exported: set[str]) -> list[str]:
    """Report public techniques that the package's root does not export."""
    return [
        source.at(technique, f"{technique.name} is not in {PACKAGE}.__all__")
        for technique in shown(source)
        if technique.name not in exported
    ]


def exports(root: Source) -> set[str]:
    """Return the names in a file's ``__all__``."""
    for node in root.tree.body:
        if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
            return set(ast.literal_eval(node.value))
    raise ValueError(f"{root.path} must assign __all__ a list of names")


RULES = [
    undecorated,
    incomplete_cards,
    cards_without_example,
    unsourced,
    crowded,
    out_of_order,
]

GOOD = '''"""A technique.

Reference: Someone, "Something", 2020.
"""

def something_(): ...

@final
@dataclass(eq=False, kw_only=True)
class Something(Technique):
    """Do something.

    * **When** at each step.
    * **Changes** weights.
    * **Logs** nothing.
    * **Saves** nothing.
    * **Cost** none.
    * **Use** always; **not** never.

    Example:
        >>> Something()
        Something()
    """
'''


def sample(text):
    return Source(f"{PACKAGE}/updates/something.py", text)


@pytest.mark.xdist_group("architecture")
@pytest.mark.parametrize("rule", RULES)
def test_every_technique_obeys(rule, package):
    assert [complaint for source in package for complaint in rule(source)] == []


@pytest.mark.xdist_group("architecture")
def test_every_technique_is_exported(package):
    tree = {source.path: source for source in package}
    exported = exports(tree[f"{PACKAGE}/public.py"])
    assert [complaint for source in tree.values() for complaint in hidden(source, exported)] == []


@pytest.mark.parametrize("rule", RULES)
def test_a_good_technique_passes(rule):
    assert rule(sample(GOOD)) == []


@pytest.mark.parametrize(
    ("rule", "old", "new"),
    [
        (undecorated, "@final\n", ""),
        (undecorated, "@dataclass(eq=False, kw_only=True)\n", "@dataclass\n"),
        (undecorated, "eq=False, ", ""),
        (undecorated, "kw_only=True", "kw_only=False"),
        (incomplete_cards, "    * **Logs** nothing.\n", ""),
        (incomplete_cards, "**Cost** none.", "**Cost**"),
        (incomplete_cards, "**When** at", "When at"),
        (incomplete_cards, "**Saves**", "**Stores**"),
        (cards_without_example, ">>> ", ""),
        (unsourced, "Reference: ", "By "),
        (crowded, '"""\n\ndef', '"""\nclass Other(Technique): ...\ndef'),
        (out_of_order, "@final", "class Other(Technique): ...\ndef late(): ...\n@final"),
    ],
)
def test_rule_sees_a_breach(rule, old, new):
    assert old in GOOD
    assert len(rule(sample(GOOD.replace(old, new)))) == 1


def test_a_hidden_technique_is_seen():
    root = Source(f"{PACKAGE}/public.py", '__all__ = ["Other"]')
    assert len(hidden(sample(GOOD), exports(root))) == 1
    assert hidden(sample(GOOD), {"Something"}) == []
    with pytest.raises(ValueError, match="must assign __all__"):
        exports(sample(GOOD))
