"""What `sae.train` returns: the autoencoders with the history of their training, and a table of both."""

import json
from typing import NamedTuple

from sae import showing
from sae.autoencoder import JumpReLU
from sae.crosscoder import Crosscoder
from sae.families import recorded_fields

_SHOWN = ("site", "site_out", "width", "l0_target", "coefficient", "skip")  # fields with a column, or a place in one


class Result(NamedTuple):
    """The autoencoders and the history; also a pair of the two, `autoencoders, history = sae.train(...)`.

    Attributes:
      autoencoders: in the order of the runs, on raw activations.
      history: the records, dicts; see `sae.train`.
    """

    autoencoders: list[JumpReLU | Crosscoder]
    history: list[dict]

    def __repr__(self) -> str:
        autoencoders = showing.count(len(self.autoencoders), "autoencoder")
        return f"Result({autoencoders}, {showing.count(len(self.history), 'record')})"

    @property
    def autoencoder(self) -> JumpReLU | Crosscoder:
        """The autoencoder, where one was trained.

        Raises:
          ValueError: where several were trained.
        """
        if len(self.autoencoders) != 1:
            raise ValueError(
                f"{len(self.autoencoders)} autoencoders were trained: take one from result.autoencoders, which is in "
                "the order of the runs"
            )
        return self.autoencoders[0]

    def table(self) -> str:
        """Returns a line for each run, from its last record, under a line with the steps of which L0 and FVU are means.

        L0, FVU and dead latents are as training saw them (`sae.evaluate` has them on held-out text). Every other field
        in which the runs differ has a column.
        """
        last = {record["run"]: record for record in self.history}
        end = max(record["step"] for record in self.history) + 1
        first = end - last[0]["batches"] + 1
        over = f"steps {first:,} to {end:,}" if first < end else f"step {end:,}"
        silent = sorted({last[run]["dead_tokens"] for run in range(len(self.autoencoders))})
        dead = f"dead in {silent[0]:,} tokens" if len(silent) == 1 else "dead (in tokens)"
        trained = [
            recorded_fields(json.loads(a.info.training)) if a.info is not None else {} for a in self.autoencoders
        ]
        names = dict.fromkeys(name for config in trained for name in config if name not in _SHOWN)
        differ = [name for name in names if len({json.dumps(config.get(name)) for config in trained}) > 1]
        rows = [["site", "width", *differ, "target", "lambda", "L0", "FVU", dead]]
        for run, (autoencoder, config) in enumerate(zip(self.autoencoders, trained, strict=True)):
            record, into = last[run], config.get("site_out")
            target = record["l0_target"]
            rows.append([
                record["site"] + (f" to {into}" if into else "") + (", skip" if config.get("skip") else ""),
                str(autoencoder.width),
                *(str(config.get(name)) for name in differ),
                "-" if target is None else f"{target:g}",
                f"{record['coefficient']:.2g}",
                f"{record['l0']:.1f}",
                f"{record['fvu']:.3f}",
                str(record["dead"]) if len(silent) == 1 else f"{record['dead']} ({record['dead_tokens']:,})",
            ])  # fmt: skip
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        # The site stands to the left, numbers to the right.
        lines = [
            "  ".join([row[0].ljust(widths[0]), *(word.rjust(w) for word, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
        return "\n".join([f"in training, L0 and FVU as means over {over}:", *lines])
