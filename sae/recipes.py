"""How to train: a frozen config, and the recipes that make one."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One autoencoder's training. The defaults are Gemma Scope's (arXiv 2408.05147, section 3).

    Units: inputs are divided by C = sqrt(E||x||^2), so E||x||^2 = 1; bandwidth, threshold_init and the coefficient are
    in those units. Warm-ups and steps count optimizer steps.

    Attributes:
      site: whose activations are reconstructed.
      width: Z, the number of latents.
      l0_target: the L0 to aim at with a quadratic penalty; None for the paper's linear one.
      coefficient: lambda, the factor of the sparsity penalty.
      steps, batch_size: optimizer steps, and tokens in each.
      learning_rate, threshold_learning_rate: Adam's, for everything but the threshold, and for the threshold.
      log_threshold: train log(theta), as the paper does, or theta itself.
      learning_rate_warmup: cosine, from a tenth; learning_rate_decay: linearly to zero, over so many last steps.
      coefficient_warmup: lambda grows linearly over so many steps.
      bandwidth: eps of the straight-through gradients. threshold_init: theta at the start.
      seed: of the initial weights and of the order of the data.

    Raises:
      ValueError: when made with a value out of its range.
    """

    site: str
    width: int
    steps: int
    l0_target: float | None = None
    coefficient: float = 6e-4
    batch_size: int = 4096
    learning_rate: float = 7e-5
    threshold_learning_rate: float = 7e-5
    log_threshold: bool = True
    learning_rate_warmup: int = 1000
    learning_rate_decay: int = 0
    coefficient_warmup: int = 10_000
    bandwidth: float = 1e-3
    threshold_init: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        positive = ("width", "steps", "batch_size", "learning_rate", "threshold_learning_rate", "bandwidth")
        for field in (*positive, "threshold_init"):
            if not getattr(self, field) > 0:
                raise ValueError(f"TrainConfig: {field} must be positive, got {getattr(self, field)}")
        for field in ("coefficient", "learning_rate_warmup", "learning_rate_decay", "coefficient_warmup", "seed"):
            if getattr(self, field) < 0:
                raise ValueError(f"TrainConfig: {field} must not be negative, got {getattr(self, field)}")
        if self.l0_target is not None and not 0 < self.l0_target <= self.width:
            raise ValueError(
                f"TrainConfig: l0_target must lie between 0 and the width {self.width}, got {self.l0_target}"
            )


def gemma_scope(site: str, width: int, steps: int, **changes) -> TrainConfig:
    """The paper's constants, for billions of tokens; any field of `TrainConfig` can be set by name."""
    return TrainConfig(site=site, width=width, steps=steps, **changes)


def short_run(site: str, width: int, steps: int, **changes) -> TrainConfig:
    """For minutes or hours. The loss, the gradients, the constraint and the folding are the paper's; what differs:

    The paper's theta moves by about its learning rate a step, relative to itself, so that in a short run it would stay
    where it began. Here theta is trained as it is, with a learning rate and a bandwidth of its own, from a start within
    the range of the pre-activations; the learning rate is higher and decays over the last third; the warm-ups are a
    twentieth and a quarter of the run; batches are smaller, so there are more steps.
    """
    defaults = {
        "coefficient": 0.06,
        "batch_size": 1024,
        "learning_rate": 3e-3,
        "threshold_learning_rate": 1e-3,
        "log_threshold": False,
        "learning_rate_warmup": max(1, steps // 20),
        "learning_rate_decay": steps // 3,
        "coefficient_warmup": steps // 4,
        "bandwidth": 0.1,
        "threshold_init": 0.1,
    }
    return TrainConfig(site=site, width=width, steps=steps, **{**defaults, **changes})
