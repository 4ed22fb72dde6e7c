"""Which run a checkpoint belongs to: its parts, and the source that it reads, with model, text and order of batches.
`run.json` holds it, and every checkpoint holds its fingerprint."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from sae.files import read_json, replace_file
from sae.runs import Run
from sae.store.source import Source

_FILE = "run.json"
FORMAT = 3  # 1 had no number and flat configs, 2 records without `batches` and another state of BatchTopK
_REFUSED = "Name another folder, or delete this one. Nothing was changed."


@dataclasses.dataclass(frozen=True)
class Identity:
    """What a run is, as JSON values.

    Attributes:
      runs: the run of each autoencoder (`Run.json`).
      store: the manifest of the source: model, text, sites, order.
      source: `kind` ("store" or "stream") and `batch_order`; and `name`, by which messages call it. The name may
        change, since a store can be moved.
    """

    runs: list[dict]
    store: dict
    source: dict
    format: int = FORMAT

    @classmethod
    def of(cls, runs: Sequence[Run], source: Source) -> "Identity":
        values = {
            "runs": [run.json() for run in runs],
            "store": source.manifest.identity(),
            "source": {"kind": source.kind, "batch_order": source.batch_order, "name": source.name},
        }
        return cls(**json.loads(json.dumps(values)))

    def fingerprint(self) -> str:
        """Returns the SHA-256 of all of it but the source's name."""
        return hashlib.sha256(json.dumps(self._compared(), sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Begins a folder for the run's checkpoints. A folder that the run has begun stays as it is."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / _FILE).exists():
            replace_file(folder / _FILE, json.dumps(dataclasses.asdict(self), indent=2) + "\n")

    def check(self, folder: Path, steps: bool) -> None:
        """Checks that a folder is free for the run, or was begun by it.

        Args:
          folder: need not exist.
          steps: whether the folder has checkpoints.

        Raises:
          ValueError: for the checkpoints of another run. It names the fields that differ, and both sources where they
            differ.
        """
        if not (folder / _FILE).exists():
            if steps:
                raise ValueError(
                    f"{folder} holds checkpoints without the {_FILE} that says which run has made them. {_REFUSED}"
                )
            return
        recorded = read_json(folder / _FILE)
        if not isinstance(recorded, dict) or not isinstance(recorded.get("source"), dict):
            raise ValueError(
                f"{folder} holds the checkpoint of an older version, which does not say whether a store or a stream "
                f"was read, and in which order. {_REFUSED}"
            )
        # pyrefly: ignore[bad-argument-type]  not None here
        before = Identity(recorded.get("runs"), recorded.get("store"), recorded["source"], recorded.get("format", 1))
        old, new = (of.store.get("format") if isinstance(of.store, dict) else None for of in (before, self))
        if old != new:
            raise ValueError(
                f"{folder} holds the checkpoint of a run that was begun on {before._words()}, in store format {old}, "
                f"and this call reads {self._words()}, in format {new}: a run goes on in the format it began in. "
                "Finish it with the version that began it, or begin again in another folder. Nothing was changed."
            )
        if before.format != FORMAT:
            raise ValueError(
                f"{folder} holds the checkpoint of a run in format {before.format}, and this version goes on with "
                f"format {FORMAT}: finish it with the version that began it, or begin again. {_REFUSED}"
            )
        changes = _differences(before._compared(), self._compared())
        if not changes:
            return
        sources = ""
        if before._compared()["source"] != self._compared()["source"] or before.store != self.store:
            sources = f"it was begun on {before._words()}, and this call reads {self._words()}; "
        raise ValueError(f"{folder} holds the checkpoint of another run: {sources}{'; '.join(changes[:3])}. {_REFUSED}")

    def check_step(self, folder: Path, fingerprint: str | None) -> None:
        """Raises ValueError unless the checkpoint of a step carries the run's fingerprint."""
        if fingerprint != self.fingerprint():
            raise ValueError(
                f"the checkpoint {folder} is of another run than {folder.parent / _FILE} says: somebody has put it "
                "there. Delete it: training goes on from the one before"
            )

    def _compared(self) -> dict:
        source = {name: value for name, value in self.source.items() if name != "name"}
        return {"runs": self.runs, "store": self.store, "source": source}

    def _words(self) -> str:
        """Returns the source in words."""
        store = self.store if isinstance(self.store, dict) else {}
        name = self.source.get("name")
        kind = "a stream" if self.source.get("kind") == "stream" else f"the store {name}"
        model, text = store.get("model"), str(store.get("corpus_sha256"))[:8]
        parameters = store.get("model_fingerprint") or store.get("model_sha256")  # of earlier formats
        return f"{kind} of {model} ({str(parameters)[:8]}) over text {text}"


def _differences(recorded: object, wanted: object) -> list[str]:
    """Returns in words the fields in which two nested JSON values differ."""
    differences: list[str] = []

    def walk(path, a, b):
        if type(a) is type(b) and isinstance(a, dict):
            for key in sorted(set(a) | set(b)):
                walk(f"{path}.{key}" if path else key, a.get(key), b.get(key))
        elif type(a) is type(b) and isinstance(a, list) and len(a) == len(b):
            for i, (x, y) in enumerate(zip(a, b, strict=True)):
                walk(f"{path}[{i}]", x, y)
        elif a != b:
            differences.append(f"{path} is {json.dumps(a)[:60]} there, {json.dumps(b)[:60]} asked for")

    walk("", recorded, wanted)
    return differences
