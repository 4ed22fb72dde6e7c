"""How to train: a frozen config, and the recipes that make one."""

import dataclasses
import math

PENALTIES = ("linear", "quadratic")
PRECISIONS = ("highest", "high", "default")
BANDS = 32  # Matryoshka prefixes are whole numbers of 32nds of the latents


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One autoencoder's training. The defaults are Gemma Scope's (arXiv 2408.05147, section 3).

    Units: inputs are divided by a constant C so that their mean squared norm is 1 (after the mean is subtracted, where
    `centre` says so); bandwidth, threshold_init and the coefficients are in those units. Warm-ups and steps count
    optimizer steps.

    Attributes:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps, batch_size: optimizer steps, and tokens in each.
      site_out: what comes out, where that is not what goes in: a transcoder. skip: it has an affine skip.
      penalty: "linear", lambda * L0 (Gemma Scope), or "quadratic", lambda * (L0 - l0_target)^2 / (2 * l0_target) a
        token (Gemma Scope 2).
      coefficient: lambda. coefficient_warmup: it grows linearly over so many steps.
      l0_target: the L0 to aim at. A linear penalty needs the controller for that.
      controller: how fast lambda follows the L0, once it is warm: its logarithm grows by controller * log(L0 /
        l0_target) a step; 0 for a fixed lambda.
      frequency_coefficient, frequency_limit: a penalty on how much more often than the limit each latent fires.
      revival: a pull on latents that are dead, towards firing; dead_tokens: silent for so many tokens is dead.
      matryoshka: prefixes of the latents, as fractions of the width, that reconstruct on their own as well.
      centre: subtract the mean; it goes into the biases when the autoencoder is released.
      learning_rate, threshold_learning_rate: Adam's, for everything but the threshold, and for the threshold.
      decoder_rate_factor: W_dec and b_dec learn at so many times the learning rate.
      learning_rate_warmup: cosine, from a tenth; learning_rate_decay: linearly to zero, over so many last steps.
      beta1, beta2: Adam's.
      log_threshold: train log(theta), as the paper does, or theta itself.
      bandwidth: eps of the straight-through gradients. threshold_init: theta at the start.
      encoder_init: the norm of each latent's encoder at the start, where its decoder's is 1.
      seed: of the initial weights. data_seed: of the order of the data, which runs in one pass have in common.
      precision: of matrix products on accelerators: "highest" is full float32, "default" the accelerator's fastest.

    Raises:
      ValueError: when made with a value out of its range, or values that do not go together.
    """

    site: str | tuple[str, ...]
    width: int
    steps: int
    site_out: str | None = None
    skip: bool = False
    penalty: str = "linear"
    coefficient: float = 6e-4
    coefficient_warmup: int = 10_000
    l0_target: float | None = None
    controller: float = 0.0
    frequency_coefficient: float = 0.0
    frequency_limit: float = 0.1
    revival: float = 0.0
    dead_tokens: int = 10_000_000
    matryoshka: tuple[float, ...] = ()
    batch_size: int = 4096
    centre: bool = False
    learning_rate: float = 7e-5
    threshold_learning_rate: float = 7e-5
    decoder_rate_factor: float = 1.0
    learning_rate_warmup: int = 1000
    learning_rate_decay: int = 0
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
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"TrainConfig: {field.name} must be a whole number, got {value!r}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"TrainConfig: {field.name} must be finite, got {value}")
        for field in ("site", "matryoshka"):  # JSON and flags know lists
            if isinstance(getattr(self, field), list):
                object.__setattr__(self, field, tuple(getattr(self, field)))
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
            if not getattr(self, field) > 0:
                raise ValueError(f"TrainConfig: {field} must be positive, got {getattr(self, field)}")
        for field in (
            *("coefficient", "learning_rate_warmup", "learning_rate_decay", "coefficient_warmup", "seed", "data_seed"),
            *("controller", "frequency_coefficient", "revival"),
        ):
            if getattr(self, field) < 0:
                raise ValueError(f"TrainConfig: {field} must not be negative, got {getattr(self, field)}")
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
        elif self.penalty == "linear" and not self.controller:
            raise ValueError(
                "TrainConfig: a linear penalty with a fixed lambda takes no notice of l0_target: set controller "
                "(0.01, say), or penalty='quadratic'"
            )


def gemma_scope(site: str | tuple[str, ...], width: int, steps: int, **changes) -> TrainConfig:
    """The paper's constants, for billions of tokens (arXiv 2408.05147, section 3); any field of `TrainConfig` can be
    set by name."""
    return TrainConfig(site, width, steps, **changes)


def gemma_scope_2(site: str | tuple[str, ...], width: int, steps: int, **changes) -> TrainConfig:
    """Gemma Scope 2's: a quadratic penalty at a target L0, warmed up over 50,000 steps, a penalty on latents that fire
    on more than a tenth of the tokens, and Matryoshka prefixes; the rest is Gemma Scope's.

    The report leaves open what the factor of its quadratic penalty is, how strong the penalty on frequent latents is,
    and which prefixes there are. Here: 1/(2 * l0_target), with which the gradient is the linear penalty's at twice the
    target; 1/10 of lambda; and a 32nd, an eighth, a quarter and a half of the latents.
    """
    defaults = {
        "penalty": "quadratic",
        "coefficient_warmup": 50_000,
        "frequency_coefficient": changes.get("coefficient", TrainConfig.coefficient) / 10,
        "matryoshka": (1 / 32, 1 / 8, 1 / 4, 1 / 2) if width % BANDS == 0 else (),
    }
    return TrainConfig(site, width, steps, **{"l0_target": 50.0, **defaults, **changes})


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
    """
    quadratic, batch_size = changes.get("penalty") == "quadratic", changes.get("batch_size", 1024)
    defaults = {
        "coefficient": 3e-3 if quadratic else 8e-4,
        "coefficient_warmup": steps // 4,
        "controller": 0.0 if changes.get("l0_target") is None else min(0.05, 24 / steps),
        "revival": 1e-3,
        "dead_tokens": max(1, steps * batch_size // 20),
        "batch_size": batch_size,
        "centre": True,
        "learning_rate": 3e-3,
        # A logarithm has further to go: theta ends at several times its start.
        "threshold_learning_rate": 1e-2 if changes.get("log_threshold") else 1e-3,
        "decoder_rate_factor": 2.0,
        "learning_rate_warmup": max(1, steps // 20),
        "learning_rate_decay": steps // 2,
        "beta1": 0.9,
        "beta2": 0.99,
        "log_threshold": False,
        "bandwidth": 0.02,
        "threshold_init": 0.01,
        "encoder_init": 0.2,
    }
    return TrainConfig(site, width, steps, **{**defaults, **changes})
