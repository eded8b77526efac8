import pytest

from lightning_tricks.core.conflicts import Claim, ConflictError, check_claims, check_order


def claim(owner: str, slot: str, *ids: int) -> Claim:
    return Claim(slot, owner, frozenset(ids) if ids else None, f"remove {owner}")


def test_disjoint_parameters_and_other_slots_do_not_conflict() -> None:
    check_claims([claim("A", "lr", 1, 2), claim("B", "lr", 3), claim("C", "clipping", 1)])


@pytest.mark.parametrize(("first", "second"), [((1, 2), (2, 3)), ((), (1,)), ((), ())])
def test_overlap_names_both_and_the_remedy(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    with pytest.raises(ConflictError, match="'lr' must have one owner, got A and B: remove A, or remove B"):
        check_claims([claim("A", "lr", *first), claim("B", "lr", *second)])


def test_order_of_gradient_work() -> None:
    check_order([("P", "penalty"), ("N", "noise"), ("C", "clipping"), ("C2", "clipping")])
    with pytest.raises(ConflictError, match="in the order N, C; got C, N"):
        check_order([("C", "clipping"), ("N", "noise")])
