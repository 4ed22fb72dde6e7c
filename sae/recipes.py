"""How to train: a frozen config, and the recipes that make one."""

import dataclasses
import difflib

from sae import showing
from sae.fields import check_fields

PENALTIES = ("linear", "quadratic")
PRECISIONS = ("highest", "high", "default")
BANDS = 32  # Matryoshka prefixes are whole numbers of 32nds of the latents
MOST_TOKENS = 2**31 - 2**24  # where counting of tokens stops on the device, so that it does not overflow
# Counters on the device are int32. JAX keeps 32 bits of a seed: two that differ above them would give equal weights.
_MOST = {"steps": 2**31 - 1, "batch_size": 2**24 - 1, "dead_tokens": MOST_TOKENS, "seed": 2**32 - 1}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One autoencoder's training. The defaults are Gemma Scope's (arXiv 2408.05147, section 3).

    Printed, it is one line; `dataclasses.asdict` has every constant.

    Units: inputs are divided by a constant C so that their mean squared norm is 1 (after the mean is subtracted, where
    `centre` says so); bandwidth, threshold_init and the coefficients are in those units. Warm-ups and steps count
    optimizer steps.

    A field that may be None is then derived from the others where it is used (`resolve`): it follows when
    `dataclasses.replace` changes them, while a number stays what it is. The recipe `short_run` leaves most of them
    None.

    Attributes:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps: optimizer steps.
      site_out: what comes out, where that is not what goes in: a transcoder.
      skip: the transcoder has an affine skip.
      penalty: "linear", lambda * L0 (Gemma Scope), or "quadratic", lambda * (L0 - l0_target)^2 / (2 * l0_target) a
        token (Gemma Scope 2).
      coefficient: lambda. None: 3e-3 for the quadratic penalty, 8e-4 for the linear one.
      coefficient_warmup: lambda grows linearly over so many steps. None: a quarter of the steps.
      l0_target: the L0 to aim at. A linear penalty needs the controller for that.
      controller: how fast lambda follows the L0, once it is warm: its logarithm grows by controller * log(L0 /
        l0_target) a step; 0 for a fixed lambda. None: 24 / steps, at most 0.05, where there is a target.
      frequency_coefficient: of a penalty on how much more often than the limit each latent fires. None: a tenth of
        `coefficient`.
      frequency_limit: share of the tokens.
      revival: a pull on latents that are dead, towards firing.
      dead_tokens: a latent that was silent for so many tokens is dead. None: a twentieth of the run's tokens.
      matryoshka: prefixes of the latents, as fractions of the width, that reconstruct on their own as well.
      batch_size: tokens of a step.
      centre: subtract the mean; it goes into the biases when the autoencoder is released.
      learning_rate: Adam's, for everything but the threshold.
      threshold_learning_rate: Adam's, for the threshold. None: 1e-2 for log(theta), 1e-3 for theta itself.
      decoder_rate_factor: W_dec and b_dec learn at so many times the learning rate.
      learning_rate_warmup: cosine, from a tenth, over so many steps. None: a twentieth of the steps.
      learning_rate_decay: linearly to zero, over so many last steps. None: half of the steps.
      beta1, beta2: Adam's.
      log_threshold: train log(theta), as the paper does, or theta itself.
      bandwidth: eps of the straight-through gradients.
      threshold_init: theta at the start.
      encoder_init: the norm of each latent's encoder at the start, where its decoder's is 1.
      seed: of the initial weights.
      data_seed: of the order of the data, which runs in one pass have in common.
      precision: of matrix products on accelerators: "highest" is full float32, "default" the accelerator's fastest.

    Raises:
      ValueError: when made with a value of another type or out of its range, or values that do not go together.
        Numbers of numpy and JAX are taken, and become plain ones.
    """

    site: str | tuple[str, ...]
    width: int
    steps: int
    site_out: str | None = None
    skip: bool = False
    penalty: str = "linear"
    coefficient: float | None = 6e-4
    coefficient_warmup: int | None = 10_000
    l0_target: float | None = None
    controller: float | None = 0.0
    frequency_coefficient: float | None = 0.0
    frequency_limit: float = 0.1
    revival: float = 0.0
    dead_tokens: int | None = 10_000_000
    matryoshka: tuple[float, ...] = ()
    batch_size: int = 4096
    centre: bool = False
    learning_rate: float = 7e-5
    threshold_learning_rate: float | None = 7e-5
    decoder_rate_factor: float = 1.0
    learning_rate_warmup: int | None = 1000
    learning_rate_decay: int | None = 0
    beta1: float = 0.0
    beta2: float = 0.999
    log_threshold: bool = True
    bandwidth: float = 1e-3
    threshold_init: float = 1e-3
    encoder_init: float = 1.0
    seed: int = 0
    data_seed: int = 0
    precision: str = "highest"

    def __post_init__(self):
        check_fields(self)
        if isinstance(self.site, tuple) and len(self.site) == 1:
            object.__setattr__(self, "site", self.site[0])
        self._check_ranges()
        self._check_sites()
        self._check_sparsity()
        if bad := [p for p in self.matryoshka if not 0 < p < 1 or p * BANDS != int(p * BANDS)]:
            raise ValueError(
                f"TrainConfig: matryoshka takes fractions k/{BANDS} of the width, k from 1 to {BANDS - 1}; got {bad[0]}"
            )
        if self.matryoshka and (self.width % BANDS or list(self.matryoshka) != sorted(set(self.matryoshka))):
            raise ValueError(
                f"TrainConfig: matryoshka wants rising fractions and a width that is a multiple of {BANDS}, got "
                f"{self.matryoshka} of {self.width}"
            )

    def __repr__(self) -> str:
        into = f" to {self.site_out}" if self.transcodes else ""
        return (
            f"TrainConfig({showing.joined(self.sites)}{into}: {showing.count(self.width, 'latent')}, {self.aim}, "
            f"{showing.count(self.steps, 'step')} of {showing.count(self.batch_size, 'token')})"
        )

    def resolve(self) -> "TrainConfig":
        """Returns the config with a number in every field that may be derived from the others; training uses these.

        Example:
          >>> dataclasses.replace(short_run("s", 64, 100), steps=400).resolve().coefficient_warmup
          100
        """
        coefficient = self.coefficient
        if coefficient is None:
            coefficient = 3e-3 if self.penalty == "quadratic" else 8e-4
        derived = {
            "coefficient": coefficient,
            "coefficient_warmup": self.steps // 4,
            "controller": 0.0 if self.l0_target is None else min(0.05, 24 / self.steps),
            "frequency_coefficient": coefficient / 10,
            "dead_tokens": min(MOST_TOKENS, max(1, self.steps * self.batch_size // 20)),
            # A logarithm has further to go: theta ends at several times its start.
            "threshold_learning_rate": 1e-2 if self.log_threshold else 1e-3,
            "learning_rate_warmup": max(1, self.steps // 20),
            "learning_rate_decay": self.steps // 2,
        }
        return dataclasses.replace(self, **{name: v for name, v in derived.items() if getattr(self, name) is None})

    @property
    def aim(self) -> str:
        """What it aims at, in words: `target L0 20`, or a fixed lambda."""
        return f"lambda {self.resolve().coefficient:g}" if self.l0_target is None else f"target L0 {self.l0_target:g}"

    @property
    def sites(self) -> tuple[str, ...]:
        """What goes in, as a tuple."""
        return (self.site,) if isinstance(self.site, str) else self.site

    @property
    def sites_out(self) -> tuple[str, ...]:
        """What comes out, as a tuple."""
        return self.sites if self.site_out is None else (self.site_out,)

    @property
    def transcodes(self) -> bool:
        """Whether what comes out is not what goes in."""
        return self.sites_out != self.sites

    def _check_ranges(self):
        for field in (
            *("width", "steps", "batch_size", "learning_rate", "threshold_learning_rate", "bandwidth"),
            *("decoder_rate_factor", "threshold_init", "encoder_init", "dead_tokens", "frequency_limit"),
        ):
            value = getattr(self, field)
            if value is not None and not value > 0:
                raise ValueError(f"TrainConfig: {field} must be positive, got {value}")
        for field in (
            *("coefficient", "learning_rate_warmup", "learning_rate_decay", "coefficient_warmup", "seed", "data_seed"),
            *("controller", "frequency_coefficient", "revival"),
        ):
            value = getattr(self, field)
            if value is not None and value < 0:
                raise ValueError(f"TrainConfig: {field} must not be negative, got {value}")
        for field, most in _MOST.items():
            if (getattr(self, field) or 0) > most:
                raise ValueError(f"TrainConfig: {field} must be at most {most:,}, got {getattr(self, field):,}")
        for field in ("beta1", "beta2"):
            if not 0 <= getattr(self, field) < 1:
                raise ValueError(f"TrainConfig: {field} must be from 0 to below 1, got {getattr(self, field)}")
        for field, known in (("penalty", PENALTIES), ("precision", PRECISIONS)):
            if getattr(self, field) not in known:
                raise ValueError(f"TrainConfig: {field} is one of {', '.join(known)}, got {getattr(self, field)!r}")

    def _check_sites(self):
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"TrainConfig: site takes one site, or several different ones, got {self.site!r}")
        if len(self.sites) > 1 and self.site_out is not None:
            raise ValueError("TrainConfig: a crosscoder gives what it takes, so it has no site_out")
        if self.skip and not self.transcodes:
            raise ValueError("TrainConfig: skip is for transcoders; an autoencoder could pass its input through it")

    def _check_sparsity(self):
        if self.l0_target is None:
            if self.penalty == "quadratic" or self.controller:
                raise ValueError("TrainConfig: a quadratic penalty, or a controller, needs an l0_target")
        elif not 0 < self.l0_target <= self.width:
            raise ValueError(
                f"TrainConfig: l0_target must lie between 0 and the width {self.width}, got {self.l0_target}"
            )
        elif self.penalty == "linear" and self.controller == 0:
            raise ValueError(
                "TrainConfig: a linear penalty with a fixed lambda takes no notice of l0_target: set controller "
                "(0.01, say), or penalty='quadratic'"
            )


def gemma_scope(site: str | tuple[str, ...], width: int, steps: int, **changes) -> TrainConfig:
    """The paper's constants, for billions of tokens (arXiv 2408.05147, section 3); any field of `TrainConfig` can be
    set by name."""
    return _config(site, width, steps, changes)


def gemma_scope_2(site: str | tuple[str, ...], width: int, steps: int, **changes) -> TrainConfig:
    """Gemma Scope 2's: a quadratic penalty at a target L0, warmed up over 50,000 steps, a penalty on latents that fire
    on more than a tenth of the tokens, and Matryoshka prefixes; the rest is Gemma Scope's.

    The report leaves open what the factor of its quadratic penalty is, how strong the penalty on frequent latents is,
    and which prefixes there are. Here: 1/(2 * l0_target), with which the gradient is the linear penalty's at twice the
    target; 1/10 of lambda, whatever lambda is; and a 32nd, an eighth, a quarter and a half of the latents.
    """
    defaults = {
        "penalty": "quadratic",
        "coefficient_warmup": 50_000,
        "frequency_coefficient": None,
        "matryoshka": (1 / 32, 1 / 8, 1 / 4, 1 / 2) if width % BANDS == 0 else (),
    }
    return _config(site, width, steps, {"l0_target": 50.0, **defaults, **changes})


def short_run(site: str | tuple[str, ...], width: int, steps: int, **changes) -> TrainConfig:
    """For minutes or hours. The loss, the gradients, the constraint and the folding are the paper's; what differs:

    - The paper's theta moves by about its learning rate a step, relative to itself, so that in a short run it would
      stay where it began. Here theta is trained as it is, with a learning rate and a bandwidth of its own.
    - Inputs are centred, as real residual streams have a mean far larger than their spread.
    - Encoders begin at a fifth of their decoders' norm, and theta a little above most pre-activations: several times as
      many latents as dimensions, all of full norm, would begin with an error four times the variance. This alone took a
      third off the FVU after 300 steps on the real Gemma 3 270M.
    - Learning rates are higher, the decoder's twice the encoder's (a twentieth off the FVU; half the encoder's put a
      tenth on it), and decay over the second half. Adam has a first moment, without which they were not stable, and a
      second moment over a hundred steps.
    - With a target, the penalty stays linear, and a controller moves lambda until the L0 is the target; the quadratic
      penalty, which also presses on how much the L0 differs between tokens, cost a tenth in FVU at an equal L0. The
      shorter the run, the faster the controller: as slow as is right for 1,200 steps, it left the L0 up to 13% below
      its target after 450.
    - Latents that have been silent for a twentieth of the run are pulled back.
    - Batches are smaller, so there are more steps; the warm-ups are a twentieth and a quarter of the run.

    What depends on the length of the run, the target or the penalty is None in the config and derived where it is used
    (`TrainConfig.resolve`), so that `dataclasses.replace(config, steps=...)` is the recipe of the other length.
    """
    defaults = {
        "coefficient": None,
        "coefficient_warmup": None,
        "controller": None,
        "revival": 1e-3,
        "dead_tokens": None,
        "batch_size": 1024,
        "centre": True,
        "learning_rate": 3e-3,
        "threshold_learning_rate": None,
        "decoder_rate_factor": 2.0,
        "learning_rate_warmup": None,
        "learning_rate_decay": None,
        "beta1": 0.9,
        "beta2": 0.99,
        "log_threshold": False,
        "bandwidth": 0.02,
        "threshold_init": 0.01,
        "encoder_init": 0.2,
    }
    return _config(site, width, steps, {**defaults, **changes})


def _config(site: str | tuple[str, ...], width: int, steps: int, changes: dict) -> TrainConfig:
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3) or names
            raise ValueError(f"TrainConfig has no field {name!r}: did you mean {', '.join(near)}?")
    return TrainConfig(site, width, steps, **changes)
