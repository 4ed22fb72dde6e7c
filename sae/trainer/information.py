"""What a released autoencoder says of itself."""

import dataclasses
import json

from sae.autoencoder import Info
from sae.recipes import TrainConfig
from sae.store.source import Source
from sae.trainer.units import Units


def sink_norms(source: Source) -> dict[str, float]:
    """Of each site by which sinks were left out, the largest norm that was not."""
    manifest = source.manifest
    return {site: manifest.sink_factor * source.median_norm(site) for site in manifest.sink_sites}


def info_of(config: TrainConfig, source: Source, units: dict[str, Units], sinks: dict[str, float]) -> Info:
    """`Info.training` has the config, the scale C of each site and whether it was centred, what training left out by
    which rule, and fingerprints of model and text, as JSON."""
    manifest = source.manifest
    facts = {
        "config": dataclasses.asdict(config),
        "scale": {site: float(unit.scale) for site, unit in units.items()},
        "left_out": {"token_ids": list(manifest.dropped_tokens), "sink_norms": sinks},
        "store": {"corpus_sha256": manifest.corpus_sha256, "model_sha256": manifest.model_sha256},
    }
    return Info(
        model=manifest.model,
        site=config.site,
        site_out=config.site if config.site_out is None else config.site_out,
        units=manifest.units,
        training=json.dumps(facts, sort_keys=True),
    )
