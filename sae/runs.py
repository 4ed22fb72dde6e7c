"""A run: one autoencoder's training, put together from parts."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sae import showing
from sae.architectures import Architecture, JumpReLU
from sae.families import FAMILIES, SEVERAL, by_part, check_several, choose
from sae.fields import check_fields
from sae.finish import Finish, LargestActivations
from sae.initialisation import Initialisation
from sae.inputs import Inputs
from sae.objectives import Objective, Reconstruction
from sae.optimizer import Adam
from sae.parts import MOST_TOKENS, Part, Sizes, Steps, of_plain_json, plain_json, steps_of
from sae.sparsity import Linear, SparsityTerm

FORMAT = 2  # of a run as JSON; 1 was a flat table of fields without a number
# Counters on the device are int32. JAX keeps 32 bits of a seed: two that differ above them would give equal weights.
_MOST = {"steps": 2**31 - 1, "batch_size": 2**24 - 1, "dead_tokens": MOST_TOKENS, "seed": 2**32 - 1}


@dataclasses.dataclass(frozen=True)
class Run:
    """One autoencoder's training. The defaults are Gemma Scope's (arXiv 2408.05147, section 3); recipes make others.

    Printed, it is one line; `run.fields()` has every value of every part by name. `run.replace(l0_target=40)` sets a
    field of whichever part has it, `dataclasses.replace` a field of the run itself.

    Units: inputs are divided by a constant C so that their mean squared norm is 1 (after the mean is subtracted, where
    `inputs.centre` says so); bandwidths, thresholds and coefficients are in those units. A field that takes steps takes
    a share of the run too, as a Fraction, and follows when `steps` changes.

    Attributes:
      site: what goes in; several sites of one width make a crosscoder.
      width: Z, the number of latents.
      steps: optimizer steps.
      batch_size: tokens of a step.
      seed: of the initial weights.
      data_seed: of the order of the data, which runs in one epoch have in common.
      site_out: what comes out, where that is not what goes in: a transcoder.
      dead_tokens: a latent that was silent for so many tokens, or such a share of the run's, is dead.
      autoencoder: the architecture.
      sparsity: terms of the loss; the first one's lambda is the one that the history shows.
      objective: the reconstructions whose error is minimised.
      inputs: scaling and centring.
      initialisation: of the weights.
      optimizer: with its learning rates.
      finish: what comes after the last step.

    Raises:
      ValueError: when made with a value of another type or out of its range, or parts that do not go together. Numbers
        of numpy and JAX are taken, and become plain ones.
    """

    site: str | tuple[str, ...]
    width: int
    steps: int
    batch_size: int = 4096
    seed: int = 0
    data_seed: int = 0
    site_out: str | None = None
    dead_tokens: Steps = 10_000_000
    autoencoder: Architecture = dataclasses.field(default_factory=JumpReLU)
    sparsity: tuple[SparsityTerm, ...] = (Linear(),)
    objective: Objective = dataclasses.field(default_factory=Reconstruction)
    inputs: Inputs = dataclasses.field(default_factory=Inputs)
    initialisation: Initialisation = dataclasses.field(default_factory=Initialisation)
    optimizer: Adam = dataclasses.field(default_factory=Adam)
    finish: tuple[Finish, ...] = (LargestActivations(),)

    def __post_init__(self):
        check_fields(self, _PLAIN)
        if isinstance(self.site, tuple) and len(self.site) == 1:
            object.__setattr__(self, "site", self.site[0])
        self._check_ranges()
        self._check_sites()
        self._check_parts()
        for _, part in self.parts():
            part.check_sizes(self.sizes)

    def __repr__(self) -> str:
        into = f" to {self.site_out}" if self.transcodes else ""
        return (
            f"Run({showing.joined(self.sites)}{into}: {showing.count(self.width, 'latent')}, {self.aim}, "
            f"{showing.count(self.steps, 'step')} of {showing.count(self.batch_size, 'token')})"
        )

    @property
    def sizes(self) -> Sizes:
        """What the parts see of it."""
        dead = min(MOST_TOKENS, steps_of(self.dead_tokens, self.steps * self.batch_size, least=1))
        return Sizes(self.width, self.steps, self.batch_size, dead, len(self.sites), self.transcodes)

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

    @property
    def l0_target(self) -> float | None:
        """The L0 that one of its parts aims at; None where none does."""
        return next((part.l0_aim for _, part in self.parts() if part.l0_aim is not None), None)

    @property
    def warm_from(self) -> int:
        """The step from which every sparsity term has its full strength."""
        return max((term.warm_from(self.steps) for term in self.sparsity), default=0)

    @property
    def aim(self) -> str:
        """What it aims at, in words: `target L0 20`, or a fixed lambda."""
        if self.l0_target is not None:
            return f"target L0 {self.l0_target:g}"
        coefficient = self.fields().get("coefficient")
        return f"{self.autoencoder.kind} without a target" if coefficient is None else f"lambda {coefficient:g}"

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every part with the name of the field that has it."""
        for name in FAMILIES:
            value = getattr(self, name)
            yield from ((name, part) for part in (value if name in SEVERAL else (value,)))

    def fields(self) -> dict[str, Any]:
        """Returns every value by name: the run's own fields, the kinds of its parts, and the parts' fields.

        A field that two parts have stands there with the kind of the later one before it: `revival.coefficient`.

        Example:
          >>> run = Run("layer_3/resid_post", 64, steps=100)
          >>> run.fields()["coefficient"], run.fields()["autoencoder"]
          (0.0006, 'jumprelu')
        """
        values = {name: getattr(self, name) for name in ("site", "width", "steps", "site_out")}
        for name in FAMILIES:
            values[name] = "+".join(part.kind for at, part in self.parts() if at == name)
        for _, part in self.parts():
            for field in dataclasses.fields(part):
                name = field.name if field.name not in values else f"{part.kind}.{field.name}"
                values[name] = getattr(part, field.name)
        return values | {name: getattr(self, name) for name in _PLAIN if name not in values}

    def replace(self, **changes) -> "Run":
        """Returns the run with other values, each given by the name of a field.

        Args:
          **changes: fields of the run (`seed`, `sparsity=(...)`), or of its parts (`learning_rate`, `l0_target`).
            `l0_target` is k of an architecture that keeps k latents, as it is in `run.l0_target`. A name may have the
            run's field or the kind before it, as in `fields`: `optimizer.beta2`, `quadratic.coefficient`.
            A part may be given by the name of its kind (`autoencoder="topk"`, `sparsity=("quadratic", "frequency")`):
            it has the kind's defaults and what it has in common with the part before it. An architecture by name that
            keeps k latents leaves out the terms of the one before, which it does not need.
            Where no part has the field, and one kind of objective or sparsity term does, a part of that kind comes in:
            a term beside the others, an objective in place of the one before, whose fields of the same names it keeps
            (`matryoshka=(0.25,)`, `revival=1e-3`).

        Raises:
          ValueError: for a field or a kind that nothing has; it offers near names. For a field that several parts have,
            or that is given under two names. And for values that the part refuses.

        Example:
          >>> Run("layer_3/resid_post", 64, steps=100).replace(learning_rate=1e-3, seed=1).optimizer.learning_rate
          0.001
          >>> Run("layer_3/resid_post", 64, steps=100).replace(autoencoder="topk", l0_target=8).autoencoder.k
          8
        """
        of_run = {name: changes.pop(name) for name in list(changes) if name in _RUN_FIELDS}
        before = {name: getattr(self, name) for name in FAMILIES}
        parts = before | {name: of_run.pop(name) for name in FAMILIES if name in of_run}
        chosen = choose(parts, before, changes)
        for place, given in by_part(parts, changes, _RUN_FIELDS, chosen).items():
            name, index = place
            if index is None:
                parts[name] = dataclasses.replace(parts[name], **given)
            else:
                several = list(parts[name])
                several[index] = dataclasses.replace(several[index], **given)
                parts[name] = tuple(several)
        return dataclasses.replace(self, **of_run, **parts)

    def json(self) -> dict[str, Any]:
        """Returns all of it as JSON has it, with the number of its format."""
        values: dict[str, Any] = {"format": FORMAT} | {name: plain_json(getattr(self, name)) for name in _PLAIN}
        for name in FAMILIES:
            value = getattr(self, name)
            values[name] = [part.json() for part in value] if name in SEVERAL else value.json()
        return values

    @classmethod
    def of_json(cls, facts: Mapping[str, Any]) -> "Run":
        """Returns the run that `json` has written.

        Raises:
          ValueError: for another format, and for kinds and fields that do not exist.
        """
        facts = dict(facts)
        if (number := facts.pop("format", 1)) != FORMAT:
            raise ValueError(f"this is a run of format {number}, and this version reads format {FORMAT}: make it again")
        for name, family in FAMILIES.items():
            of = family.of_json
            facts[name] = tuple(map(of, facts[name])) if name in SEVERAL else of(facts[name])
        types = {field.name: field.type for field in dataclasses.fields(cls) if field.name in _PLAIN}
        values: dict[str, Any] = {
            name: of_plain_json(v, types[name]) if name in types else v for name, v in facts.items()
        }
        return cls(**values)

    def _check_ranges(self) -> None:
        for field in ("width", "steps", "batch_size", "dead_tokens"):
            if not getattr(self, field) > 0:
                raise ValueError(f"Run: {field} must be positive, got {getattr(self, field)}")
        for field in ("seed", "data_seed"):
            if getattr(self, field) < 0:
                raise ValueError(f"Run: {field} must not be negative, got {getattr(self, field)}")
        for field, most in _MOST.items():
            if getattr(self, field) > most:
                raise ValueError(f"Run: {field} must be at most {most:,}, got {getattr(self, field):,}")

    def _check_sites(self) -> None:
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise ValueError(f"Run: site takes one site, or several different ones, got {self.site!r}")
        if len(self.sites) > 1 and self.site_out is not None:
            raise ValueError("Run: a crosscoder gives what it takes, so it has no site_out")

    def _check_parts(self) -> None:
        for name, family in FAMILIES.items():
            value = getattr(self, name)
            if name in SEVERAL:
                value = check_several(name, value)
                object.__setattr__(self, name, value)
            for part in value if name in SEVERAL else (value,):
                if not isinstance(part, Part) or part.registry is not family.registry:
                    raise ValueError(
                        f"Run: {name} takes parts of the kinds {', '.join(family.registry)}; got {showing.kind(part)}"
                    )
        if not self.autoencoder.l0_gradient and (idle := [term for term in self.sparsity if term.reads_l0]):
            raise ValueError(
                f"Run: {type(idle[0]).__name__} acts through the L0, which has no gradient in a "
                f"{type(self.autoencoder).__name__}, so that it would change nothing: give sparsity=() where k latents "
                "are kept, else sparsity=(L1(...),)"
            )


_PLAIN = ("site", "width", "steps", "batch_size", "seed", "data_seed", "site_out", "dead_tokens")
_RUN_FIELDS = tuple(field.name for field in dataclasses.fields(Run))
