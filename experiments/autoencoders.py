"""Autoencoders in folders: where training puts them, so that it replaces none of another run, and at which site each
belongs."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags

import sae
from sae.families import recorded_fields
from sae.files import replace_file
from sae.formats import files
from sae.formats.format import read_info
from sae.released import Released
from sae.sites import token_site
from sae.store.source import Source
from sae.trainer.information import info_of
from sae.trainer.naming import run_names

SITE = flags.DEFINE_string(
    "site", None, "The site of autoencoders that do not say it: without an info.json, and not in Gemma Scope's folders."
)


def folders_of(root: Path, runs: Sequence[sae.Run], named: Sequence[str] = (), suffix: str = "") -> list[Path]:
    """Returns where autoencoders go, in the manner of Gemma Scope: `layer_3/resid_post/width_1536/target_l0_20`.

    Args:
      root: the folder of all autoencoders.
      runs: the runs.
      named: the names of fields (`sae.Run.fields`) that stand in the folders' names; see `naming.run_names`.
      suffix: stands at the end of the names.
    """
    return [root / f"{name}{suffix}" for name in run_names(runs, named)]


def save(autoencoders: Sequence[Released], folders: Sequence[Path], history: Sequence[Mapping]) -> None:
    """Saves the autoencoders of a training, each with the records of its run in `history.json`.

    Args:
      autoencoders: in the order of the runs.
      folders: where each autoencoder goes.
      history: the records of all runs.
    """
    for number, (autoencoder, folder) in enumerate(zip(autoencoders, folders, strict=True)):
        sae.save(autoencoder, folder)
        if jax.process_index() == 0:
            records = [record for record in history if record["run"] == number]
            replace_file(folder / "history.json", json.dumps(records, indent=1) + "\n")


def check_free(folders: Sequence[Path], runs: Sequence[sae.Run], source: Source | None = None) -> None:
    """Refuses to replace autoencoders of other runs.

    Args:
      folders: where the runs' autoencoders will go.
      runs: the runs.
      source: what they train on; None before it exists.

    Raises:
      ValueError: for a folder with another run's autoencoder; it names how the runs differ. Nothing is changed.
    """
    for folder, run in zip(folders, runs, strict=True):
        if not any((folder / name).exists() for name in files.main_files()):
            continue
        if differences := _differences(_record(folder / "info.json"), _expected(run, source)):
            raise ValueError(
                f"{folder} has the autoencoder of another run: {'; '.join(differences[:3])}. Name another folder, or "
                "give --overwrite to replace it. Nothing was changed."
            )


def _record(file: Path) -> dict:
    """Returns what an autoencoder's info.json says of it and its run; empty without such a file."""
    if not file.exists():
        return {}
    # pyrefly: ignore[bad-argument-type]  not None here
    info = dataclasses.asdict(read_info(file.parent))
    return json.loads(json.dumps(info)) | {"training": json.loads(info["training"])}


def _expected(run: sae.Run, source: Source | None) -> dict:
    """Returns what the info.json of a run would say, without what training finds out."""
    if source is None:
        return {"training": {"run": run.json()}}
    growing = source.growing  # the limits of its sinks are those of the run's start
    info = info_of(run, source, {}, {} if growing else source.sink_limits())
    wanted = json.loads(json.dumps(dataclasses.asdict(info)))
    training = json.loads(info.training)
    del training["scale"]
    del wanted["shape"]  # it follows from model and site, and older records lack it
    if growing:
        wanted.pop("counted", None)
    return wanted | {"training": training}


_NEWER = "factor"  # a field of sinks that records of earlier versions lack


def _differences(recorded: dict, wanted: dict) -> list[str]:
    """Returns in words the fields in which a recorded run differs from the one that the flags describe."""
    if recorded.get("training", {}).get("config"):
        return ["its run is recorded in format 1, of an earlier version, and this one is in format 2"]
    if not recorded.get("training", {}).get("run"):
        return ["the folder does not say which run"]
    differences: list[str] = []
    recorded, wanted = _with_fields(recorded), _with_fields(wanted)
    order = {name: i for i, name in enumerate(wanted["training"]["run"])}

    def walk(path: tuple[str, ...], old: object, new: object) -> None:
        if isinstance(old, dict) and isinstance(new, dict):
            for name in sorted(new, key=lambda name: order.get(name, -1)):
                if name != _NEWER or old.get(name) is not None:
                    walk((*path, name), old.get(name), new[name])
        elif old != new:
            name = ".".join(part for part in path if part not in ("training", "run"))
            differences.append(f"{name} is {json.dumps(old)[:60]} there, {json.dumps(new)[:60]} here")

    walk((), recorded, wanted)
    return differences


def _with_fields(record: dict) -> dict:
    """Returns a record with the fields of its run by name, in place of the parts with these fields."""
    return record | {"training": record["training"] | {"run": recorded_fields(record["training"])}}


def load(folder: Path, model: sae.LanguageModel) -> Released:
    """Returns the autoencoder in a folder. Where neither its files nor its path say the site, `--site` does.

    Raises:
      ValueError: for an autoencoder whose site is not known, and for a `--site` that is not the recorded one.
    """
    return _at_a_site(sae.load(folder), folder, model)


def outline(folder: Path, model: sae.LanguageModel) -> Released:
    """Returns the same without reading its arrays (`sae.formats.files.outline`)."""
    return _at_a_site(files.outline(folder), folder, model)


def _at_a_site(autoencoder, folder: Path, model: sae.LanguageModel) -> Released:
    site = SITE.value if flags.FLAGS.is_parsed() else None  # Python code that calls a launch's function has no flags
    if autoencoder.info is None:
        if site is None:
            raise ValueError(
                f"{folder} does not say its site: it has no info.json, and its path is none of Gemma Scope's. Give "
                "--site, and the model with --model"
            )
        shape = tuple(token_site(model, site).shape)
        return dataclasses.replace(autoencoder, info=sae.Info(model.name, site, site, shape=shape))
    if site not in (None, autoencoder.info.site):
        raise ValueError(f"{folder} belongs to {autoencoder.info.site}, got --site={site}: leave the flag out")
    return autoencoder
