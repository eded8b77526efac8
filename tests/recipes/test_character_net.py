"""The character transformer: no place sees the future, heads are tied or not, and it can be averaged."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from lightning_tricks.recipes.character_net import CharacterNet


def net(**settings):
    return CharacterNet(11, **{"length": 9, "width": 8, "blocks": 2, "heads": 2, **settings}).eval()


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_future_characters_do_not_change_logits_of_the_past(norm):
    model, text = net(norm=norm), torch.randint(11, (4, 9))
    before = model(text)
    for place in range(1, 9):
        changed = text.clone()
        changed[:, place:] = (changed[:, place:] + 1) % 11
        after = model(changed)
        torch.testing.assert_close(after[:, :place], before[:, :place], rtol=0, atol=0)
        assert (after[:, place:] != before[:, place:]).any(dim=-1).all()  # and the later ones do see it


def test_what_comes_before_does_count():
    model, text = net(), torch.randint(11, (1, 9))
    changed = text.clone()
    changed[0, 0] = (changed[0, 0] + 1) % 11
    assert (model(changed)[0, 1:] != model(text)[0, 1:]).any(dim=-1).all()


def test_order_counts():
    model = net(blocks=1)
    assert not torch.allclose(
        model(torch.tensor([[1, 2, 3]]))[0, -1], model(torch.tensor([[2, 1, 3]]))[0, -1]
    )


def test_shorter_texts_are_the_beginnings_of_longer_ones():
    model, text = net(), torch.randint(11, (2, 9))
    torch.testing.assert_close(model(text[:, :4]), model(text)[:, :4])


def test_longer_texts_are_refused():
    with pytest.raises(ValueError, match="characters must have at most 9 places, got 10"):
        net()(torch.zeros(1, 10, dtype=torch.long))


@pytest.mark.parametrize("through", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_tied_head_stays_tied(through):
    tied = through(net())
    assert tied.head.weight is tied.embedding.weight
    loose = through(net(tied=False))
    assert loose.head.weight is not loose.embedding.weight


def test_it_begins_near_equal_chances():
    torch.manual_seed(0)
    model, text = CharacterNet(97, width=64), torch.randint(97, (4, 64))
    losses = torch.nn.functional.cross_entropy(model(text).flatten(0, 1), text.roll(-1, 1).flatten())
    assert losses.item() == pytest.approx(4.57, abs=0.1)  # ln 97
