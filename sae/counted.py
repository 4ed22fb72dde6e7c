"""`Counted`: the one rule of which tokens count, for harvest, training, evaluation, pages and live use.

The harvest makes the rule, the store and the autoencoder record it, and every reader of tokens follows it. Nothing here
knows of models: the norms by which attention sinks are recognised come from the caller.
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
    """The rule for attention sinks: tokens with a far larger activation than others, as the first of a text often has.

    `factor` and `sites` are the request to a harvest. The store or the run computes the `limits`, which evaluation
    follows.

    Attributes:
        factor: a token is a sink where its norm is over this multiple of the median; None where it was not recorded.
        sites: the sites where norms are measured, in alphabetical order. A token is a sink if it is one at any of them.
            () before a harvest: the harvested sites of the residual stream.
        limits: (site, norm) pairs, by site, or a dict: the norm, in raw units, over which a token is a sink. None
            before a harvest.

    Raises:
        ValueError: for a factor that is not above 1, limits of other sites than `sites` or that are no norms, or
            neither factor nor limits.

    Example:
        >>> sae.Sinks(4.0)
        Sinks(factor=4.0, sites=(), limits=None)
        >>> sae.Sinks(4.0).with_limits({"embed": 90.0}).sites
        ('embed',)
    """

    factor: float | None = None
    sites: tuple[str, ...] = ()
    limits: tuple[tuple[str, float], ...] | None = None

    def __post_init__(self):
        check_fields(self, ("factor", "sites"))
        object.__setattr__(self, "sites", tuple(sorted(self.sites)))
        if self.factor is not None and not self.factor > 1:
            raise ValueError(f"Sinks: factor is a multiple of the median norm, above 1; got {self.factor}")
        if self.limits is None:
            if self.factor is None:
                raise ValueError("Sinks need a factor, a multiple of the median norm such as 4.0, or limits")
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
        """Returns the same rule with the limits that a store or a run has computed."""
        return dataclasses.replace(self, limits=tuple(limits.items()))

    def __str__(self) -> str:
        if self.limits is not None:
            return f"sinks ({', '.join(f'{site} over {norm:.4g}' for site, norm in self.limits)})"
        return f"sinks (over {self.factor:g} medians{' at ' if self.sites else ''}{', '.join(self.sites)})"


@dataclasses.dataclass(frozen=True)
class Counted:
    """The rule of which tokens of a text count.

    Attributes:
        special_ids: ids that never count: BOS, EOS, padding.
        left_out: whether the text marks tokens that do not count (`Sequences.left_out`, such as all but the model's
            turns of chats). None where it was not recorded: the text decides.
        sinks: the rule for attention sinks, which do not count; None: no token is a sink.

    Example:
        >>> counted = sae.Counted((0, 1))
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
            ValueError: for sinks whose limits were not computed yet.
        """
        if self.sinks is None:
            return ()
        if self.sinks.limits is None:
            raise ValueError(
                "these sinks have no limits yet: a harvest's store or a stream computes them. Take `counted` of that "
                "store, or of an autoencoder's `info`"
            )
        return self.sinks.limits

    @property
    def sink_sites(self) -> tuple[str, ...]:
        """The sites where the norms of sinks are measured, which `mask` needs."""
        return () if self.sinks is None else self.sinks.sites

    def with_limits(self, limits: Mapping[str, float]) -> "Counted":
        """Returns the same rule with the limits of sinks that a store or a run has computed.

        Args:
            limits: {site: norm}; empty without sinks.
        """
        return self if self.sinks is None else dataclasses.replace(self, sinks=self.sinks.with_limits(limits))

    def text(
        self, tokens: Integer[np.ndarray, "S T"], left_out: Bool[np.ndarray, "S T"] | None = None
    ) -> Bool[np.ndarray, "S T"]:
        """Returns which tokens count by the text alone: sinks count too.

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
        """Returns the rule for a text with marks, or for one without.

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
        """Returns the given rule. By default all tokens count but special ids and those that the text leaves out.

        Raises:
            ValueError: for a value that is no rule.
        """
        if not isinstance(counted, cls | None):
            raise ValueError(f"`counted` is a sae.Counted, or None for the default; got {counted!r:.60}")
        return cls(special_ids) if counted is None else counted

    def omissions(self, only_model_turns: bool = False) -> str:
        """Returns the tokens that do not count, in words.

        Args:
            only_model_turns: whether the text marks all but the model's turns of chats (`Origin`).

        Example:
            >>> sae.Counted((0, 1, 2), left_out=False, sinks=sae.Sinks(4.0)).omissions()
            'special tokens such as BOS, EOS and padding; attention sinks (norms over 4 medians)'
        """
        marks = {
            True: "users' turns and the template of chats (only_model_turns)"
            if only_model_turns
            else "what the text marks as left out",
            False: "",
            None: "what the text marks as left out (not on record)",
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
