"""Which tokens count: `Counted`, the one rule of harvest, training, evaluation, pages and live use.

The harvest makes it, the store and the autoencoder record it, and every reader of tokens asks it. Nothing here knows of
models: the norms by which attention sinks are told come from the caller.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Integer

from sae.fields import check_fields, of_json
from sae.text.sequences import is_text


@dataclasses.dataclass(frozen=True)
class Sinks:
    """Attention sinks: tokens whose activation is far larger than the others', as the first of a text often is.

    Before a harvest, `factor` and `sites` say what is asked for. A store or a run finds the `limits`, and evaluation
    goes by them.

    Attributes:
      factor: a token is a sink where its norm is over this multiple of the median; None where this was not recorded.
      sites: where norms are measured, in alphabetical order; a token is a sink if it is one at any of them. () before a
        harvest: those of the harvested sites that are of the residual stream.
      limits: (site, norm) pairs, by site; a dict is taken too. The norm, in raw units, over which a token is a sink.
        None before a harvest.

    Raises:
      ValueError: for a factor that is not above 1, limits of other sites than `sites` or that are no norms, or neither
        factor nor limits.

    Example:
      >>> Sinks(4.0)
      Sinks(factor=4.0, sites=(), limits=None)
      >>> Sinks(4.0).with_limits({"embed": 90.0}).sites
      ('embed',)
    """

    factor: float | None = None
    sites: tuple[str, ...] = ()
    limits: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self):
        check_fields(self, ("factor", "sites"))
        object.__setattr__(self, "sites", tuple(sorted(self.sites)))
        if self.factor is not None and not self.factor > 1:
            raise ValueError(f"the factor of sinks is a multiple of the median norm, more than 1; got {self.factor}")
        if self.limits is None:
            if self.factor is None:
                raise ValueError("Sinks take a factor, a multiple of the median norm such as 4.0, or their limits")
            return
        pairs = self.limits.items() if isinstance(self.limits, Mapping) else self.limits
        try:
            limits = tuple(sorted((str(site), float(norm)) for site, norm in pairs))  # JSON knows lists
        except (TypeError, ValueError):
            raise ValueError(f"the limits of sinks are (site, norm) pairs; got {self.limits!r:.60}") from None
        if wrong := [(site, norm) for site, norm in limits if not 0 <= norm < math.inf]:
            raise ValueError(
                f"the limit of a sink is a norm, finite and at least 0; got {wrong[0][1]} at {wrong[0][0]}"
            )
        named = tuple(site for site, _ in limits)
        if self.sites and self.sites != named:
            raise ValueError(
                f"the limits of sinks are of {', '.join(named) or 'no site'}, and their sites are "
                f"{', '.join(self.sites)}: give the limits of these sites, or leave `sites` out"
            )
        object.__setattr__(self, "limits", limits)
        object.__setattr__(self, "sites", self.sites or named)

    def with_limits(self, limits: Mapping[str, float]) -> "Sinks":
        """Returns the same with the limits that a store or a run has found."""
        return dataclasses.replace(self, limits=tuple(limits.items()))

    def __str__(self) -> str:
        if self.limits is not None:
            return f"sinks ({', '.join(f'{site} over {norm:.4g}' for site, norm in self.limits)})"
        return f"sinks (over {self.factor:g} medians{' at ' if self.sites else ''}{', '.join(self.sites)})"


@dataclasses.dataclass(frozen=True)
class Counted:
    """Which tokens of a text count.

    Attributes:
      special_ids: ids that never count: BOS, EOS, padding.
      left_out: whether the text marks tokens that do not count (`Sequences.left_out`, such as all but the model's turns
        of chats); None where this was not recorded: as the text says.
      sinks: which tokens are attention sinks, and do not count; None: no token is one.

    Example:
      >>> counted = Counted((0, 1))
      >>> counted.text(np.array([[1, 5, 6, 0]]))
      array([[False,  True,  True, False]])
    """

    special_ids: tuple[int, ...]
    left_out: bool | None = None
    sinks: Sinks | None = None

    def __post_init__(self):
        check_fields(self, ("special_ids", "left_out"))
        if isinstance(self.sinks, Mapping):  # as JSON has it
            object.__setattr__(self, "sinks", of_json(Sinks, self.sinks))
        if not isinstance(self.sinks, Sinks | None):
            raise ValueError(f"Counted: sinks are Sinks, such as Sinks(4.0), or None; got {self.sinks!r:.60}")

    @property
    def sink_limits(self) -> tuple[tuple[str, float], ...]:
        """(site, norm) pairs: the norms over which a token does not count.

        Raises:
          ValueError: for sinks whose limits nobody has found yet.
        """
        if self.sinks is None:
            return ()
        if self.sinks.limits is None:
            raise ValueError(
                "these sinks have no limits yet: the store or stream that a harvest makes finds them. Take its "
                "`counted`, or that of an autoencoder's `info`"
            )
        return self.sinks.limits

    @property
    def sink_sites(self) -> tuple[str, ...]:
        """The sites where the norms of sinks are measured, which `mask` needs."""
        return () if self.sinks is None else self.sinks.sites

    def with_limits(self, limits: Mapping[str, float]) -> "Counted":
        """Returns the same with the limits of sinks that a store or a run has found.

        Args:
          limits: {site: norm}; empty without sinks.
        """
        return self if self.sinks is None else dataclasses.replace(self, sinks=self.sinks.with_limits(limits))

    def text(
        self, tokens: Integer[np.ndarray, "S T"], left_out: Bool[np.ndarray, "S T"] | None = None
    ) -> Bool[np.ndarray, "S T"]:
        """Returns which tokens count as far as the text alone tells: all but sinks.

        Args:
          tokens: [S, T] int32.
          left_out: [S, T] bool, the text's marks; None where it has none.

        Returns:
          [S, T] bool.
        """
        text = is_text(tokens, self.special_ids)
        return text if left_out is None else text & ~left_out

    def mask(
        self,
        tokens: Integer[np.ndarray, "S T"],
        left_out: Bool[np.ndarray, "S T"] | None,
        norms: Mapping[str, Float[np.ndarray, "S T"]],
    ) -> Bool[np.ndarray, "S T"]:
        """Returns which tokens count.

        Args:
          tokens: [S, T] int32.
          left_out: [S, T] bool, the text's marks; None where it has none.
          norms: {site: [S, T]} of `sink_sites`, in raw units.

        Returns:
          [S, T] bool.
        """
        counts = self.text(tokens, left_out)
        for site, limit in self.sink_limits:
            counts = counts & (norms[site] <= limit)
        return counts

    def for_text(self, marked: bool) -> "Counted":
        """Returns the rule for a text with marks, or without.

        Args:
          marked: whether the text has a `left_out`.

        Raises:
          ValueError: when the rule is for the other kind of text.
        """
        if self.left_out is None or self.left_out == marked:
            return dataclasses.replace(self, left_out=marked)
        kinds = {True: "leaves tokens out (only_model_turns, say)", False: "leaves no token out"}
        raise ValueError(
            f"the tokens that count are those of a text that {kinds[self.left_out]}, and the text given "
            f"{kinds[marked]}: figures over other tokens would not compare. Give sequences cut alike "
            "(`sae.text.Sequences`, not their tokens alone), or another rule with `counted=`"
        )

    @classmethod
    def or_default(cls, counted: "Counted | None", special_ids: tuple[int, ...]) -> "Counted":
        """Returns a rule that was given, or else all but a tokenizer's special ids and what the text leaves out.

        Raises:
          ValueError: for what is no rule.
        """
        if not isinstance(counted, cls | None):
            raise ValueError(f"`counted` is a sae.Counted, or None for the default; got {counted!r:.60}")
        return cls(special_ids) if counted is None else counted

    def omissions(self, only_model_turns: bool = False) -> str:
        """Returns in words, for people, what does not count.

        Args:
          only_model_turns: whether what the text marks is all but the model's turns of chats (`Origin`).

        Example:
          >>> Counted((0, 1, 2), left_out=False, sinks=Sinks(4.0)).omissions()
          'special tokens such as BOS, EOS and padding; attention sinks (norms over 4 medians)'
        """
        marks = {
            True: "users' turns and the template of chats (only_model_turns)"
            if only_model_turns
            else "what the text marks as left out",
            False: "",
            None: "what the text marks as left out, if anything (not on record)",
        }
        factor = None if self.sinks is None else self.sinks.factor
        sinks = (
            "" if self.sinks is None else "attention sinks" + (f" (norms over {factor:g} medians)" if factor else "")
        )
        special = "special tokens such as BOS, EOS and padding" if self.special_ids else ""
        return "; ".join(part for part in (special, marks[self.left_out], sinks) if part) or "nothing"

    def __str__(self) -> str:
        ids = f"ids {', '.join(map(str, self.special_ids))}" if self.special_ids else ""
        parts = [ids, "what the text leaves out" if self.left_out else "", str(self.sinks or "")]
        return f"all but {', '.join(part for part in parts if part)}" if any(parts) else "all"
