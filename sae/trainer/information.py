"""The record that a released autoencoder has of its training (`sae.Info`)."""

import dataclasses
import json

from sae.autoencoder import Info
from sae.inputs import Units
from sae.records import Record
from sae.runs import Run
from sae.store.source import Source


def info_of(run: Run, source: Source, units: dict[str, Units], sinks: dict[str, float]) -> Info:
    """Returns what is known of an autoencoder before it is trained. A fact that no file can hold is an error then.

    `Info.training` has the run (`Run.json`), the scale C of each site, whether a store or a stream was read, the tokens
    of the run, and the dtype of the model's activations, as JSON; `counted` says which tokens were trained on, and
    `record` has the model and the text.

    Args:
      run: the run.
      source: what the run reads.
      units: {site: `Units`}.
      sinks: {site: the norm above which a token is left out}, as of the run's start.

    Raises:
      TypeError: for a fact that JSON cannot hold; training calls this before its first step.
    """
    manifest = source.manifest
    shapes = {manifest.sites[site] for site in run.sites}
    facts = {
        "run": run.json(),
        "scale": {site: float(unit.scale) for site, unit in units.items()},
        "source": source.kind,
        "tokens": run.steps * run.batch_size,
        "store": {"activation_dtype": manifest.activation_dtype},
    }
    return Info(
        model=manifest.model,
        site=run.site,
        site_out=run.site if run.site_out is None else run.site_out,
        units=manifest.units,
        training=json.dumps(facts, sort_keys=True),
        counted=manifest.counted.with_limits(sinks),
        record=Record(
            manifest.model_fingerprint,
            manifest.corpus_sha256,
            manifest.tokenizer_sha256,
            manifest.parameters_dtype,
            manifest.origin,
            model_sha256=None if manifest.former is None else manifest.former["model_sha256"],
        ),
        # A crosscoder's sites may have different shapes, and then their axes cannot have been stacked apart.
        shape=shapes.pop() if len(shapes) == 1 else None,
    )


def with_result(info: Info, record: dict) -> Info:
    """Returns the info with how many latents are dead, and over how many tokens, as the run's last record says.

    Args:
      info: from `info_of`.
      record: the last record of this run; plain numbers.
    """
    result = {name: record[name] for name in ("dead", "dead_tokens") if name in record}
    return dataclasses.replace(info, training=json.dumps(json.loads(info.training) | result, sort_keys=True))
