"""The model card of a release, and its entry for SAELens: read as the hub and as YAML have them."""

import dataclasses
import re

import pytest
from huggingface_hub import metadata_load

import sae
from sae.formats.widths import label, width_of_folder
from sae.releasing import saelens_entry
from tests.sae import releasable

PATH = "layer_3/width_256/average_l0_20"


@pytest.fixture(autouse=True)
def pictures(monkeypatch):
    releasable.draw_once(monkeypatch)


@pytest.fixture
def card(tmp_path):
    """A function that releases, and returns the card's front matter and its text."""

    def release(**options):
        out = tmp_path / "release"
        released = sae.release(tmp_path / "saes", out, overwrite=True, **options)
        return metadata_load(out / "README.md"), (out / "README.md").read_text(encoding="utf-8"), released

    return release


def table(text, heading):
    """The rows of the first table under a heading, by its first column: {heading of a column: cell}."""
    lines = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}


def test_the_front_matter_has_what_is_given_and_nothing_else(tmp_path, card):
    releasable.save(tmp_path / "saes")
    front, _, _ = card()
    assert front == {"library_name": "mishax-lite", "tags": ["sparse-autoencoder", "interpretability"]}
    front, _, _ = card(licences=sae.Licences("cc-by-4.0"))
    assert front["license"] == "cc-by-4.0"


def test_a_model_of_the_hub_is_the_base_model(tmp_path, card):
    releasable.save(tmp_path / "saes", model="gemma2-2b")
    front, text, _ = card(repository="me/my-saes")
    assert front["base_model"] == "google/gemma-2-2b"
    assert 'sae.load("me/my-saes", "layer_3/width_256/target_l0_20")' in text


def test_every_metric_stands_in_the_table(tmp_path, card):
    one, _ = releasable.save(tmp_path / "saes", l0=20.2)
    releasable.save(tmp_path / "saes", aim=40.0, seed=1, l0=41.0)
    _, text, _ = card()
    rows = table(text, "Autoencoders")
    assert list(rows) == [f"`{PATH}`", "`layer_3/width_256/average_l0_41`"]
    row = rows[f"`{PATH}`"]
    for name, value in releasable.metrics(one, l0=20.2).to_dict().items():
        if name not in ("site", "width", "rows_are_documents"):
            assert float(row[name].replace(",", "")) == pytest.approx(value), name
    assert (row["site"], row["latents"], row["L0 aimed at"]) == ("layer_3/resid_post", "256", "20")
    assert f"text whose fingerprint begins with `{'34' * 8}…`, in the model `{'ab' * 8}…`" in text
    assert (tmp_path / "release" / "tradeoff.png").read_bytes()[:4] == b"\x89PNG" and "(tradeoff.png)" in text


def test_data_recipe_and_provenance_are_those_on_record(tmp_path, card):
    releasable.save(tmp_path / "saes")
    releasable.save(tmp_path / "saes", aim=40.0, seed=1)
    _, text, _ = card(licences=sae.Licences(text="public domain"))
    data, recipe = table(text, "Data"), table(text, "Recipe")
    assert data["text"]["value"] == "the text that is shipped with gemma2-tiny"
    assert data["fingerprint of the token sequences"]["value"] == releasable.TEXT
    assert data["token ids that do not count"]["value"] == "0, 1, 2"
    assert data["tokens that training read"]["value"] == "9,216"
    assert recipe["`steps`"]["value"] == "9" and recipe["`autoencoder`"]["value"] == "jumprelu"
    assert "`seed`" not in recipe and "| path | `seed` | `l0_target` |" in text
    assert table(text, "Provenance")["fingerprint of its parameters and config"]["value"] == releasable.MODEL
    licences = {what: row["licence"] for what, row in table(text, "Licences").items()}
    assert licences == {"autoencoders": "not given", "model": "not given", "text": "public domain"}


def test_what_is_missing_is_said_to_be_missing(tmp_path, card):
    """Nothing is recorded but model and site, as of somebody else's autoencoder."""
    bare = {"training": "{}", "record": None, "counted": None}
    sae.save(releasable.autoencoder(**bare), tmp_path / "saes" / "mine")
    _, text, released = card()
    lines = text.partition("\n## Not on record\n\n")[2].splitlines()
    assert lines == [f"- {line[0].upper()}{line[1:]}." for line in released.missing]
    assert released.missing == (
        "the licence of the autoencoders is not given",
        "the licence of the model is not given",
        "the licence of the text is not given",
        "metrics of all autoencoders: not measured",
        "the recipe of all autoencoders: not on record",
        "the text of all autoencoders: not on record",
        "which tokens count of all autoencoders: not on record",
        "the model's fingerprint of all autoencoders: not on record",
        "the tokenizer's fingerprint of all autoencoders: not on record",
        "the fingerprint of the text of all autoencoders: not on record",
    )
    assert "No metrics: not measured." in text and "tradeoff.png" not in text
    assert table(text, "Autoencoders")["`layer_3/width_256/l0_unknown`"]["L0 aimed at"] == "not on record"


def test_a_full_record_misses_nothing(tmp_path, card):
    releasable.save(tmp_path / "saes", l0=20.2)
    _, text, released = card(licences=sae.Licences("apache-2.0", "apache-2.0", "public domain"))
    assert released.missing == () and text.endswith("## Not on record\n\nNothing that this card has a place for.\n")


def test_texts_that_differ_are_told_apart(tmp_path, card):
    one, _ = releasable.save(tmp_path / "saes", l0=20.2)
    record = dataclasses.replace(one.info.record, corpus_sha256="77" * 32)
    releasable.save(tmp_path / "saes", aim=40.0, l0=41.0, record=record)
    _, text, _ = card()
    assert f"Of 1 autoencoder (`{PATH}`):" in text and "77" * 32 in text and releasable.TEXT in text


def test_markup_in_records_stays_text(tmp_path, card):
    origin = dataclasses.replace(releasable.autoencoder().info.record.origin, corpus="a|b\n# c")
    record = dataclasses.replace(releasable.autoencoder().info.record, origin=origin)
    releasable.save(tmp_path / "saes", record=record)
    _, text, _ = card()
    assert table(text, "Data")["text"]["value"] == "a\\|b # c"


def entry(tmp_path):
    """The entry for SAELens, as YAML has it."""
    text = (tmp_path / "release" / saelens_entry.NAME).read_text(encoding="utf-8")
    front = tmp_path / "front.md"
    front.write_text(f"---\n{text}---\n", encoding="utf-8")
    return metadata_load(front), text


def test_the_entry_for_saelens_is_of_the_form_of_its_registry(tmp_path, card):
    """As its pretrained_saes.yaml has `gemma-scope-2b-pt-res`."""
    one, folder = releasable.save(tmp_path / "saes", width=16384, model="gemma2-2b")
    releasable.measure(folder, one, l0=70.6, fvu=0.25)
    card(repository="me/gemma-scope-2b-pt-res-mine")
    read, text = entry(tmp_path)
    path = "layer_3/width_16k/average_l0_71"
    assert read == {
        "gemma-scope-2b-pt-res-mine": {
            "conversion_func": "gemma_2",
            "links": {"model": "https://huggingface.co/google/gemma-2-2b"},
            "model": "gemma-2-2b",
            "repo_id": "me/gemma-scope-2b-pt-res-mine",
            "saes": [{"id": path, "path": path, "variance_explained": 0.75, "l0": 70.6}],
        }
    }
    assert "does not read" not in text


def test_the_entry_says_what_saelens_does_not_read_and_what_is_unknown(tmp_path, card):
    releasable.save(tmp_path / "saes")
    _, text, _ = card()
    read, written = entry(tmp_path)
    assert read["gemma2-tiny-saes"]["repo_id"] is None and "# no repository was named" in written
    path = "layer_3/width_256/target_l0_20"
    assert read["gemma2-tiny-saes"]["saes"] == [{"id": path, "path": path}]
    assert "# SAELens's loader gemma_2 knows models" in written and "SAELens's loader gemma_2 knows models" in text
    card(format="saelens")
    assert entry(tmp_path)[0]["gemma2-tiny-saes"]["conversion_func"] is None
    card(layout="gemma_scope_2")
    assert entry(tmp_path)[0]["gemma2-tiny-saes"]["conversion_func"] == "gemma_3"
    releasable.save(tmp_path / "saes", site="layer_3/attn_z")
    assert "gemma_3 goes by the folder, and takes attn_out for other hooks" in card(layout="gemma_scope_2")[1]
    card(layout="gemma_scope_2", format="mishax_lite")
    assert not (tmp_path / "release" / saelens_entry.NAME).exists()


def test_licences_are_texts_of_one_line():
    for wrong in ("", "a\nb", 3):
        with pytest.raises(ValueError, match="Licences: model is a licence in a line, or None"):
            sae.Licences(model=wrong)


def test_widths_are_called_as_gemma_scope_calls_them():
    """The names of google/gemma-scope-* (arXiv 2408.05147, table 1), which SAELens maps to these numbers."""
    named = {"16k": 16384, "32k": 32768, "65k": 65536, "131k": 131072, "262k": 262144, "524k": 524288, "1m": 1048576}
    for name, width in named.items():
        assert label(width) == name and width_of_folder(f"layer_3/width_{name}/average_l0_9") == width
    assert label(24576) == "24576" and width_of_folder("width_24576_l0_9") == 24576


def test_whether_the_metrics_are_of_the_text_of_training_is_said(tmp_path, card):
    one, folder = releasable.save(tmp_path / "saes", l0=20.2)
    assert "The text of training has another fingerprint; whether it shares sequences" in card()[1]
    releasable.measure(folder, one, text=releasable.TEXT)
    assert "That is the text that was trained on." in card()[1]
