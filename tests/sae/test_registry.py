"""Registries find entries by name, and refuse what is ambiguous or unknown."""

import pytest

from sae.registry import Registry


def colours() -> Registry[str]:
    registry = Registry("colour")
    for name in ("crimson", "green", "blue"):
        registry.register(name)(name.upper())
    return registry


def test_entries_are_found_by_name_in_their_order():
    registry = colours()
    assert registry["green"] == "GREEN" and list(registry) == ["crimson", "green", "blue"] and len(registry) == 3
    assert registry.get("red") is None and "red" not in registry and registry.get("blue") == "BLUE"
    assert registry.register("red")(str) is str  # a decorator returns what it was given


def test_a_name_that_is_taken_is_refused():
    registry = colours()
    with pytest.raises(ValueError, match=r"there is a colour 'green' already: 'GREEN'"):
        registry.register("green")
    assert registry.remove("green") == "GREEN"
    assert registry.register("green")("other") == registry["green"] == "other"
    with pytest.raises(ValueError, match=r"the name of a colour is a text, got None"):
        registry.register(None)


def test_an_unknown_name_is_one_error_with_near_names():
    with pytest.raises(ValueError, match=r"unknown colour 'cromson': did you mean 'crimson'\? there is crimson, green"):
        colours()["cromson"]
    with pytest.raises(ValueError, match=r"unknown colour 'x': there is crimson, green, blue$"):
        colours()["x"]
