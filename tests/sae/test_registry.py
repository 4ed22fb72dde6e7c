"""Names lead to types, once, and a wrong name is answered with near ones."""

import doctest

import pytest

from sae import registry
from sae.registry import Registry


def filled():
    shapes = Registry("shape")

    @shapes.register("circle")
    class Circle:
        pass

    return shapes, Circle


def test_a_registered_type_is_found_by_its_name_and_its_name_by_it():
    shapes, Circle = filled()
    assert shapes["circle"] is Circle and shapes.name_of(Circle) == "circle"
    assert list(shapes) == ["circle"] and "circle" in shapes and "square" not in shapes and len(shapes) == 1
    assert shapes.get("square") is None and repr(shapes) == "Registry(shape: circle)"


def test_a_wrong_name_is_answered_with_near_ones():
    shapes, _ = filled()
    with pytest.raises(ValueError, match=r"^no shape is named 'circel': did you mean circle\?$"):
        shapes["circel"]
    with pytest.raises(KeyError):
        shapes["zzz"]
    with pytest.raises(ValueError, match="did you mean none yet"):
        Registry("thing")["x"]


def test_a_name_is_given_once():
    shapes, Circle = filled()
    with pytest.raises(ValueError, match=r"a shape named 'circle' already, .*filled.<locals>.Circle: choose another"):
        shapes.register("circle")(int)
    with pytest.raises(ValueError, match="Circle is the shape 'circle' already"):
        shapes.register("disc")(Circle)
    with pytest.raises(ValueError, match="is a text, got 3"):
        shapes.register(3)
    assert list(shapes) == ["circle"] and shapes["circle"] is Circle


def test_a_cell_that_runs_again_replaces_its_own_type():
    shapes, Circle = filled()
    _, again = filled()
    shapes.register("circle")(again)
    assert shapes["circle"] is again is not Circle


def test_what_is_removed_makes_room():
    shapes, _ = filled()
    with pytest.raises(ValueError, match="no shape is named 'disc': did you mean circle"):
        shapes.remove("disc")
    shapes.remove("circle")
    shapes.register("circle")(int)
    assert shapes["circle"] is int


def test_a_type_that_nobody_registered_has_no_name():
    with pytest.raises(ValueError, match="int is no registered shape"):
        filled()[0].name_of(int)


def test_examples():
    assert doctest.testmod(registry).failed == 0
