"""What a released autoencoder says of itself."""

import dataclasses
import json

from sae.autoencoder import Info
from sae.inputs import Units
from sae.records import Record
from sae.runs import Run
from sae.store.source import Source


def info_of(run: Run, source: Source, units: dict[str, Units], sinks: dict[str, float]) -> Info:
    """Returns what is known of an autoencoder before it is trained, so that what cannot be written is an error then.

    `Info.training` has the run (`Run.json`), the scale C of each site, whether a store or a stream was read, the tokens
    of the run, and the dtype of the model's activations, as JSON; `counted` says which tokens were trained on, and
    `record` has the model and the text.

    Args:
      sinks: {site: the norm over which a token was left out}, of the time when the run began.

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
        # A crosscoder's sites may have different ones, which nobody can have stacked with their axes apart.
        shape=shapes.pop() if len(shapes) == 1 else None,
    )


def with_result(info: Info, record: dict) -> Info:
    """Adds to what is known what the last record of the run says: how many latents are dead, and over how many tokens.

    Args:
      info: from `info_of`.
      record: the last one of this run; plain numbers.
    """
    result = {name: record[name] for name in ("dead", "dead_tokens") if name in record}
    return dataclasses.replace(info, training=json.dumps(json.loads(info.training) | result, sort_keys=True))
