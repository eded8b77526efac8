"""The cards: that each is whole, and that what is read of a class is what Python finds in it."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

import lightning_tricks as lt
from lightning_tricks.cli.card_text import HEADINGS, parts_of
from lightning_tricks.cli.cards import FAMILIES, Card, card_of, cards, families
from lightning_tricks.cli.references import Reference, bibtex, references_in
from lightning_tricks.fusion.methods import FusionMethod
from lightning_tricks.lifecycle.technique import Technique
from lightning_tricks.lifecycle.written import written
from tests.contract.cases import CASES

CARDS = {card.name: card for card in cards()}


def lacking(card: Card) -> list[str]:
    """Return what the card of a technique lacks."""
    told = {name for name, said in card.parts.bullets.items() if said}
    taken = {setting.name for setting in card.settings}
    return [
        *(heading for heading in (*HEADINGS, "Not") if heading not in told),
        *(setting.name for setting in card.settings if not setting.about),
        *(f"{name}, which is no setting" for name in card.parts.settings if name not in taken),
        *(name for name in ("summary", "example") if not getattr(card.parts, name)),
        *(["references"] if not card.references else []),
        *(
            f"year of {each.title}"
            for each in card.references
            if not each.year and "/docs." not in (each.url or "")
        ),
    ]


def test_there_is_a_card_for_each_name() -> None:
    assert sorted(CARDS) == sorted(lt.__all__)
    assert {card.family for card in CARDS.values()} == set(FAMILIES) == set(families())


@pytest.mark.parametrize("name", CASES)
def test_the_card_of_a_technique_is_whole(name: str) -> None:
    assert lacking(CARDS[name]) == []


@pytest.mark.parametrize(
    ("old", "new", "lacks"),
    [
        ("* **Logs** ", "* Logs ", ["Logs"]),
        ("; **not** ", "; not ", ["Not"]),
        ("    decay: ", "    deacy: ", ["decay", "deacy, which is no setting"]),
        ("Example:", "Returns:", ["example"]),
    ],
)
def test_what_a_card_lacks_is_seen(old: str, new: str, lacks: list[str]) -> None:
    card, text = CARDS["EMAWeights"], inspect.getdoc(lt.EMAWeights) or ""
    assert old in text
    parts = parts_of(text.replace(old, new, 1))
    about = {**parts.settings, "label": "Which."}
    broken = [dataclasses.replace(each, about=about.get(each.name, "")) for each in card.settings]
    assert lacking(dataclasses.replace(card, parts=parts, settings=tuple(broken))) == lacks


def test_settings_are_those_of_the_class() -> None:
    for name, card in CARDS.items():
        kind = getattr(lt, name)
        if card.kind not in {"technique", "method"}:
            continue
        fields = {each.name: each for each in dataclasses.fields(kind) if each.init}
        assert {setting.name for setting in card.settings} == set(fields), name
        for setting in card.settings:
            default, factory = fields[setting.name].default, fields[setting.name].default_factory
            if setting.default is None:
                assert default is factory is dataclasses.MISSING, (name, setting)
            else:
                value = factory() if default is dataclasses.MISSING else default
                known = {**vars(lt), **vars(inspect.getmodule(kind))}
                assert written(eval(setting.default, known)) == written(value), (name, setting)


def test_arguments_are_those_of_the_function() -> None:
    for name, card in CARDS.items():
        value = getattr(lt, name)
        if not inspect.isclass(value):
            told = [each.name for each in card.settings]
            assert told == list(inspect.signature(value).parameters), name


def test_kinds_are_told_by_bases() -> None:
    for name, card in CARDS.items():
        value = getattr(lt, name)
        base = {"technique": Technique, "method": FusionMethod}.get(card.kind)
        if inspect.isclass(value):
            assert [issubclass(value, each) for each in (Technique, FusionMethod)] == [
                base is Technique,
                base is FusionMethod,
            ], name
        else:
            assert card.kind in {"schedule", "function"}
    assert isinstance(lt.cosine(), lt.Schedule)
    assert CARDS["cosine"].kind == CARDS["one_cycle"].kind == "schedule"
    assert {name for name, card in CARDS.items() if card.kind == "mixin"} == {
        "BalancedLosses",
        "Distillation",
        "GANMixin",
        "OptimizerMixin",
    }


def test_each_address_in_a_list_of_references_is_one_reference() -> None:
    for name, card in CARDS.items():
        text = inspect.getmodule(getattr(lt, name)).__doc__ or ""
        told = text[found.start() :] if (found := re.search(r"^References?:", text, re.MULTILINE)) else ""
        assert [each.url for each in card.references] == re.findall(r"https?://[^\s;,]*[\w/]", told), name
        assert bool(told) == bool(card.references), name


def test_bibtex_of_all_references_has_keys_of_their_own_and_whole_braces() -> None:
    every = {each.url: each for card in CARDS.values() for each in card.references}
    text = bibtex(every.values())
    keys = re.findall(r"^@misc\{(.*),$", text, re.MULTILINE)
    assert len(set(keys)) == len(keys) == len(every) > 60
    assert all(re.fullmatch(r"[a-z]+(\d{4})?[a-z0-9]+", key) for key in keys)
    assert text.count("{") == text.count("}")
    assert not re.search(r"(?<!\\)[&%#]", text)


def test_pointers_into_the_file_are_left_out_and_other_brackets_are_not() -> None:
    assert card_of("GradientClip").parts.summary == "Clip gradients by value, by global norm, or both."
    assert "shape (), in nats" in card_of("distillation_loss").parts.summary
    assert card_of("RandomWeights").parts.summary.endswith("(RLW).")


def test_a_reference_takes_no_address_of_the_next() -> None:
    said = 'References: A, B and Van Dyk, "One: two?", 1996; as in Li et al., "Three", https://a.org/b_c.'
    assert references_in(said) == [
        Reference(("A", "B", "Van Dyk"), False, "One: two?", 1996, None),
        Reference(("Li",), True, "Three", None, "https://a.org/b_c"),
    ]
