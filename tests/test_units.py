"""Lists as text."""

from bitnetctl.units import listed, shortened


def test_lists_are_joined_and_cut() -> None:
    assert [listed("abcd"[:count], 3) for count in (1, 2, 3, 4)] == ["a", "a and b", "a, b and c", "a, b, c and 1 more"]
    assert listed("abcd") == "a, b, c and d"
    assert [shortened("abcd"[:count], 2) for count in (1, 2, 4)] == ["a", "a, b", "a, b and 2 more"]
