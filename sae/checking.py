"""`sae.check`: is an autoencoder used as it was trained? It names the mistakes that users of published files make most:
another site, a norm's gain, a transposed skip, a scale that was not folded in, BOS that must not count.

Where an autoencoder reconstructs the site that its file claims, nothing else is tried. Axis letters: A dim of the
activation.
"""

import dataclasses
import warnings
from typing import Literal

import numpy as np
from jaxtyping import Integer

from sae import showing
from sae.autoencoder import check_values
from sae.counted import Counted
from sae.evaluation.counting import Sites, as_tuple
from sae.evaluation.matching import RecordWarning, check_model, counted_of
from sae.formats.l0 import claimed_l0
from sae.language_model import LanguageModel, check_tokenizer
from sae.released import Released
from sae.text import Sequences, as_sequences
from sae.text.shipped import SAMPLE, sample
from sae.trials import ENOUGH, NOTHING, differ_by_a_gain, is_far, neighbours, search, site_pairs, without_copies
from sae.usage import Captured, Fit, Usage

Problem = Literal["site", "gain", "skip", "scale", "BOS", "unknown"]
TOKENS = 2048
_LATENTS = 2**26  # tokens times latents of a trial: 65,536 latents are tried on 1,024 tokens, a million on 256
# The error at BOS, as a part of its spread, above which BOS was not trained on; it has to be twice the FVU, too.
_SPECIAL = 0.3
_LITTLE = 0.5  # FVU above which the usage that fits best explains little


class CheckWarning(UserWarning):
    """The warning that an autoencoder does not fit its file's claims; the message says what fits.

    Example:
        >>> import dataclasses, warnings
        >>> info = dataclasses.replace(autoencoder.info, site="layer_0/resid_post", site_out="layer_0/resid_post")
        >>> sae.save(dataclasses.replace(autoencoder, info=info), "claims_layer_0")
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     _ = sae.load("claims_layer_0", check=(model, sequences))
        >>> [warning.category.__name__ for warning in caught]
        ['CheckWarning']
    """


@dataclasses.dataclass(frozen=True, repr=False)
class Check:
    """The result of `sae.check`: whether an autoencoder fits its file's claims, and which usage fits best.

    Attributes:
        model: the model's name.
        problems: the problems by name; () where there is none. "site": another site goes in or comes out. "gain": a
            norm's gain is in the input, or is missing there. "skip": `W_skip` has to be transposed. "scale": a scale of
            the inputs is not folded in. "BOS": BOS and other special tokens must not count. "unknown": nothing that was
            tried fits.
        claimed: the fit of the file's claims, over all tokens that the file counts; None where the model has no such
            site, or one of another length.
        best: the fit of the usage that fits best, without special tokens.
        counted: which tokens count in that usage.
        l0_claimed: the L0 that the file claims; None where it claims none.
        special_error: the squared error at BOS and other special tokens over their squared distance from the mean of
            the others; None where they do not count.
        tried: all fits that were measured, in the order of measuring.
        tokens: the number of tokens that were measured.
        text: the text in words.

    Example:
        >>> check = sae.check(autoencoder, model, sequences)
        >>> check.problems, check.fits, check.best.usage.site
        ((), True, 'layer_1/resid_post')
    """

    model: str
    problems: tuple[Problem, ...]
    claimed: Fit | None
    best: Fit
    counted: Counted
    l0_claimed: float | None
    special_error: float | None
    tried: tuple[Fit, ...]
    tokens: int
    text: str

    @property
    def fits(self) -> bool:
        """Whether the autoencoder fits its file's claims. A high FVU may still say that it explains little."""
        return not self.problems

    def mended(self, autoencoder: Released) -> Released:
        """Returns the autoencoder without its problems: the sites and the rule of the best usage are in its `info`, its
        skip is transposed and its scale is folded in, where that was a problem.

        Args:
            autoencoder: the one that was checked.

        Raises:
            ValueError: where nothing fits.
        """
        if "unknown" in self.problems:
            raise ValueError(f"nothing that was tried fits, so nothing can be mended: {self}")
        if self.fits:
            return autoencoder
        usage = self.best.usage
        mended = usage.folded(autoencoder)
        if mended.info is None:
            return mended
        return dataclasses.replace(mended, info=dataclasses.replace(mended.info, counted=self.counted))

    def __repr__(self) -> str:
        over = f"over {showing.count(self.tokens, 'token')} of {self.text}"
        if self.fits:
            verdict = "fits best, yet explains little" if self.best.fvu > _LITTLE else "fits"
            return f"Check({self.best.usage.words()} of {self.model} {verdict}: {self._figures(self.best)}, {over})"
        claim = (
            "the file claims no site that the model has"
            if self.claimed is None
            else (
                f"{self.claimed.usage.words()} of {self.model} does not fit as claimed: {self._figures(self.claimed)}"
            )
        )
        sentences = ". ".join(self._sentence(problem) for problem in self.problems)
        if "unknown" in self.problems:
            return f"Check({claim}. {sentences}; {over})"
        little = ", which still explains little" if self.best.fvu > _LITTLE else ""
        return (
            f"Check({claim}. {sentences}. Then: {self._figures(self.best)}{little}, {over}. "
            "`check.mended(autoencoder)` returns it mended)"
        )

    def _figures(self, fit: Fit) -> str:
        file = "" if self.l0_claimed is None else f" (claimed or aimed at: {self.l0_claimed:.4g})"
        return f"FVU {fit.fvu:.3f}, L0 {fit.l0:.1f}{file}"

    def _sentence(self, problem: Problem) -> str:
        usage = self.best.usage
        into = showing.joined(usage.site)
        out = "" if usage.site == usage.site_out else f" and writes {showing.joined(usage.site_out)}"
        if problem == "site":
            return f"It reads {into}{out}"
        if problem == "gain":
            return f"It reads {into}{out}, which differs from the claimed site by a norm's gain alone"
        if problem == "skip":
            return "W_skip has to be transposed"
        if problem == "scale":
            why = "" if usage.convention is None else f" ({usage.convention})"
            same = "the same" if usage.scale_out == usage.scale else f"{usage.scale_out:.4g}"
            return (
                f"Its inputs have to be multiplied by {usage.scale:.4g}{why}, and its outputs divided by {same}: a "
                "scale that was not folded in"
            )
        if problem == "BOS":
            return (
                "BOS and other special tokens must not count: the error at them is "
                f"{self.special_error:.2f} of their spread, at other tokens {self.best.fvu:.2f}"
            )
        return f"Nothing that was tried fits: the best is {self.best.usage.words()} with FVU {self.best.fvu:.3f}"


def check(
    autoencoder: Released,
    model: LanguageModel,
    sequences: Integer[np.ndarray, "S T"] | Sequences | None = None,
    site: str | Sites | None = None,
    *,
    tokens: int = TOKENS,
) -> Check:
    """Measures whether an autoencoder fits the sites and conventions that its file claims.

    Where its FVU there is above 0.1, or its L0 is far from the file's, other usages are tried: every site of its length
    in the same layer and the two layers beside it, the skip transposed, and scales of the inputs. Another usage is
    named where its FVU is at most 0.8 of the claimed one; a difference between the L0 and the file's counts by its
    root.

    Args:
        autoencoder: as `sae.load` returns it.
        model: the autoencoder's model, with its tokenizer.
        sequences: a text: `sae.text.Sequences`, or tokens [S, T] int32; by default the text that comes with this
            package (`sae.text.sample`).
        site: the autoencoder's site, in place of that in its `info`. Where neither names one, every site of the model
            is tried.
        tokens: the most tokens to measure, spread over the text; fewer where many usages of a wide autoencoder are
            tried.

    Returns:
        The result. Printed, it is one to three sentences.

    Raises:
        ValueError: for an autoencoder of another model (by its fingerprint, or else its name), or with values that are
            not finite, and for tokens that are not the model's, or of which none counts.

    Example:
        >>> print(sae.check(autoencoder, model, sequences))
        Check(layer_1/resid_post of gemma2-tiny fits...: FVU 0..., L0 ..., over ... tokens of 8 of 197 sequences of 64
        tokens)
    """
    check_tokenizer(model)
    check_values(autoencoder)
    text = SAMPLE if sequences is None else None
    sequences = sample(model) if sequences is None else as_sequences(sequences, model)
    info = autoencoder.info
    with warnings.catch_warnings():  # published files lack records; this check replaces them
        warnings.simplefilter("ignore", RecordWarning)
        check_model(info, model)
        rule = dataclasses.replace(counted_of(info, model), left_out=sequences.left_out is not None)
    usage = None
    if site is not None:
        usage = Usage(site, site)
    elif info is not None:
        usage = Usage(info.site, info.site_out)
    if usage is None and autoencoder.several_sites():
        raise ValueError(f"this {type(autoencoder).noun} does not say which sites it reads: name them (site=...)")
    l0_claimed = claimed_l0(autoencoder)
    names = () if usage is None else (*as_tuple(usage.site), *as_tuple(usage.site_out))
    capture = lambda sites: Captured.of(model, sequences, rule, sites, tokens)  # noqa: E731
    tried: list[Fit] = []
    claimed = None
    # pyrefly: ignore[bad-argument-type]  not None here
    if names and _possible(autoencoder, model, usage):
        captured = capture(tuple(dict.fromkeys(names)))
        # pyrefly: ignore[bad-argument-type]  not None here
        claimed = captured.fit(autoencoder, usage)
        tried.append(claimed)
    best = claimed
    if best is None or best.fvu > ENOUGH or is_far(best, l0_claimed):
        pairs = site_pairs(model, usage, autoencoder)
        every = {name for sites, outs in pairs.items() for group in (sites, *outs) for name in group}
        if not every:
            raise ValueError(f"{model.name} has no site of {autoencoder.dims[0]} dimensions where this could belong")
        tokens = min(tokens, _LATENTS // autoencoder.width)
        captured = capture(tuple(name for name in model.sites if name in every or name in names))
        pairs = without_copies(pairs, captured)
        # pyrefly: ignore[bad-argument-type]  not None here
        best = claimed = None if claimed is None else captured.fit(autoencoder, usage)
        best = search(captured, autoencoder, usage, best, pairs, l0_claimed, tried)
    # pyrefly: ignore[unbound-name]  set before it is read
    special_error = captured.special_error(autoencoder, best.usage)
    problems = _problems(captured, best, usage if claimed is not None else None, special_error)
    if claimed is not None:
        # pyrefly: ignore[bad-argument-type]  not None here
        claimed = captured.fit(autoencoder, usage, special=True)
    if "BOS" in problems:
        rule = dataclasses.replace(rule, special_ids=tuple(sorted({*rule.special_ids, *model.tokenizer.special_ids})))
    count = len(captured.special)
    about = (model.name, problems, claimed, best, rule, l0_claimed, special_error, tuple(tried), count)
    return Check(*about, text or sequences.size)


def _possible(autoencoder: Released, model: LanguageModel, usage: Usage) -> bool:
    """Returns whether the model has sites of these names and lengths."""
    for sites, A in zip((as_tuple(usage.site), as_tuple(usage.site_out)), autoencoder.dims, strict=True):
        if len(sites) != autoencoder.site_count or not all(
            name in model.sites and (name,) in neighbours(model, None, A) for name in sites
        ):
            return False
    return True


def _problems(captured: Captured, best: Fit, usage: Usage | None, special_error: float | None) -> tuple[Problem, ...]:
    if best.fvu >= NOTHING:
        return ("unknown",)
    problems: list[Problem] = []
    fitting = best.usage
    if usage is None:
        problems.append("site")
    else:
        ways = ((usage.site, fitting.site), (usage.site_out, fitting.site_out))
        for claimed, other in ways:
            if claimed != other:
                problems.append("gain" if differ_by_a_gain(captured, claimed, other) else "site")
    if fitting.transposed_skip:
        problems.append("skip")
    if (fitting.scale, fitting.scale_out) != (1, 1):
        problems.append("scale")
    if special_error is not None and special_error > max(_SPECIAL, 2 * best.fvu):
        problems.append("BOS")
    return tuple(dict.fromkeys(problems))
