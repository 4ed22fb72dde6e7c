"""Figures as text."""

import dataclasses
import doctest
import importlib.util
import sys
from types import SimpleNamespace

import pytest

import sae
from sae.evaluation import tables

ONE = sae.Metrics("layer_3/resid_post", 30_592, 30_000, 20.34, 0.1239, 3.4, 3.52, 7.0, 0.123, 0.9641, 12, 1536, 90)


def test_records_are_columns_and_a_data_frame_where_pandas_is_installed(monkeypatch):
    records = [{"step": 0, "l0": 9.5}, {"step": 50, "l0": 8.0, "fvu": 0.5}]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tables.as_table(records) == {"step": [0, 50], "l0": [9.5, 8.0], "fvu": [None, 0.5]}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    frames = SimpleNamespace(DataFrame=lambda columns: ("frame", columns))
    monkeypatch.setitem(sys.modules, "pandas", frames)
    assert tables.as_table(records)[0] == "frame" and tables.as_table(records)[1]["step"] == [0, 50]


def test_the_examples():
    assert doctest.testmod(tables, extraglobs={"sae": sae}).failed == 0


def test_the_table_has_the_delta_loss_and_says_over_how_many_tokens_latents_are_dead():
    other = dataclasses.replace(ONE, site="layer_12/attn_z", delta_loss=-1.5, dead=0)
    assert tables.table([ONE, other], ["20", "–"]) == (
        "site                width  target    L0    FVU  delta loss (nats)  loss recovered  dead in 30,592 tokens\n"
        "layer_3/resid_post   1536      20  20.3  0.124              0.123           0.964                     12\n"
        "layer_12/attn_z      1536       –  20.3  0.124             -1.500           0.964                      0"
    )


def test_tokens_that_differ_stand_in_each_row():
    other = dataclasses.replace(ONE, tokens=7)
    text = tables.table([ONE, other])
    assert [line.split("  ")[-1].strip() for line in text.splitlines()] == ["dead (in tokens)", "12 (30,592)", "12 (7)"]


def test_columns_of_unequal_length_are_refused():
    with pytest.raises(ValueError, match=r"of one length, got \{'a': 1, 'b': 2\}"):
        tables.in_columns({"a": ["1"], "b": ["1", "2"]})
    with pytest.raises(ValueError, match=r"'site': 1, .*'target': 2"):
        tables.table([ONE], ["1", "2"])


def test_figures_go_through_json():
    assert sae.Metrics(**ONE.to_dict()) == ONE and "largest" not in ONE.to_dict()
