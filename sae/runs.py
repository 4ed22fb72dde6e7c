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

FORMAT = 2  # the format of a run as JSON; format 1 was a flat table of fields without a number
# Counters on the device are int32. JAX keeps 32 bits of a seed: two that differ above them would give equal weights.
_MOST = {"steps": 2**31 - 1, "batch_size": 2**24 - 1, "dead_tokens": MOST_TOKENS, "seed": 2**32 - 1}


@dataclasses.dataclass(frozen=True)
class Run:
    """One autoencoder's training. The defaults are Gemma Scope's (arXiv 2408.05147, section 3); recipes make others.

    Printed, a run is one line; `run.fields()` has every value of every part by name. `run.replace(l0_target=40)` sets a
    field of the part that has it, `dataclasses.replace` a field of the run itself.

    Units: inputs are divided by a constant C so that their mean squared norm is 1 (after the mean is subtracted, where
    `inputs.centre` says so); bandwidths, thresholds and coefficients are in those units. A field that takes steps also
    takes a part of the run, as a Fraction, and follows when `steps` changes.

    Attributes:
        site: the input site; several sites of one dim make a crosscoder.
        width: Z, the number of latents.
        steps: optimizer steps.
        batch_size: tokens of a step.
        seed: seed of the initial weights.
        data_seed: seed of the order of the rows. Runs that train together need the same one.
        site_out: the output site of a transcoder; None where the output is the input.
        dead_tokens: a latent that was silent for this many tokens, or this part of the run's, is dead.
        autoencoder: the architecture.
        sparsity: terms of the loss; the history shows the lambda of the first one.
        objective: the reconstructions whose error is minimised.
        inputs: scaling and centring.
        initialisation: how the weights begin.
        optimizer: the optimizer, with its learning rates.
        finish: what happens after the last step.

    Raises:
        ValueError: for a value of another type or out of its range, and for parts that exclude one another. Numbers of
            numpy and JAX are taken, and become plain ones.

    Example:
        >>> run = sae.Run("layer_3/resid_post", width=1536, steps=600)
        >>> run
        Run(layer_3/resid_post: 1,536 latents, lambda 0.0006, 600 steps of 4,096 tokens)
        >>> run.replace(autoencoder="topk", l0_target=20, learning_rate=1e-3).autoencoder.k
        20
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
        """The numbers of the run that its parts know."""
        dead = min(MOST_TOKENS, steps_of(self.dead_tokens, self.steps * self.batch_size, least=1))
        return Sizes(self.width, self.steps, self.batch_size, dead, len(self.sites), self.transcodes)

    @property
    def sites(self) -> tuple[str, ...]:
        """The input sites, as a tuple."""
        return (self.site,) if isinstance(self.site, str) else self.site

    @property
    def sites_out(self) -> tuple[str, ...]:
        """The output sites, as a tuple."""
        return self.sites if self.site_out is None else (self.site_out,)

    @property
    def transcodes(self) -> bool:
        """Whether the output sites are not the input sites."""
        return self.sites_out != self.sites

    @property
    def l0_target(self) -> float | None:
        """The L0 that one of the parts aims at; None where no part aims at one."""
        return next((part.l0_aim for _, part in self.parts() if part.l0_aim is not None), None)

    @property
    def warm_from(self) -> int:
        """The step from which every sparsity term has its full strength."""
        return max((term.warm_from(self.steps) for term in self.sparsity), default=0)

    @property
    def aim(self) -> str:
        """The aim of the run in words: `target L0 20`, or a fixed lambda."""
        if self.l0_target is not None:
            return f"target L0 {self.l0_target:g}"
        coefficient = self.fields().get("coefficient")
        return f"{self.autoencoder.kind} without a target" if coefficient is None else f"lambda {coefficient:g}"

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Yields every part with the name of its field."""
        for name in FAMILIES:
            value = getattr(self, name)
            yield from ((name, part) for part in (value if name in SEVERAL else (value,)))

    def fields(self) -> dict[str, Any]:
        """Returns every value by name: the run's own fields, the kinds of its parts, and the parts' fields.

        Where two parts have a field, the later one's name has its kind before it: `revival.coefficient`.

        Example:
            >>> run = sae.Run("layer_3/resid_post", 64, steps=100)
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
                `l0_target` is k for an architecture that keeps k latents, as it is in `run.l0_target`. The run's field
                or the kind may stand before a name, as in `fields`: `optimizer.beta2`, `quadratic.coefficient`.
                A part may be given by the name of its kind (`autoencoder="topk"`, `sparsity=("quadratic",
                "frequency")`). Such a part has the kind's defaults and the values of the fields that it has in common
                with the part before it. An architecture that is given by name and keeps k latents drops the sparsity
                terms, which it does not need.
                Where no part has a field, and a single kind of objective or sparsity term has it, a part of that kind
                is added (`matryoshka=(0.25,)`, `revival=1e-3`): a term joins the others; an objective replaces the
                old one and keeps the values of its fields of the same names.

        Raises:
            ValueError: for a field or a kind that nothing has; it offers near names. For a field that several parts
                have, or that is given under two names, and for a value that the part refuses.

        Example:
            >>> run = sae.Run("layer_3/resid_post", 64, steps=100)
            >>> run.replace(learning_rate=1e-3, seed=1).optimizer.learning_rate
            0.001
            >>> run.replace(autoencoder="topk", l0_target=8).autoencoder.k
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
        """Returns the whole run as JSON values, with the number of the format."""
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
            raise ValueError(f"this is a run of format {number}, and this version reads format {FORMAT}: write it anew")
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
            raise ValueError("Run: the output sites of a crosscoder are its input sites: leave site_out out")

    def _check_parts(self) -> None:
        for name, family in FAMILIES.items():
            value = getattr(self, name)
            if name in SEVERAL:
                value = check_several(name, value)
                object.__setattr__(self, name, value)
            for part in value if name in SEVERAL else (value,):
                if not isinstance(part, Part) or part.registry is not family.registry:
                    names = ""
                    if isinstance(part, str):
                        names = (
                            ". A kind's name is taken by run.replace(...) and by the recipes, such as "
                            f"sae.short_run(..., {name}={(part,) if name in SEVERAL else part!r}), and not by sae.Run"
                        )
                    raise ValueError(
                        f"Run: {name} takes parts of the kinds {', '.join(family.registry)}; got {showing.kind(part)}"
                        + names
                    )
        if not self.autoencoder.l0_gradient and (idle := [term for term in self.sparsity if term.reads_l0]):
            l1 = "L1(...)" if self.l0_target is None else f"ControlledL1(l0_target={self.l0_target:g})"
            raise ValueError(
                f"Run: {type(idle[0]).__name__} acts through the L0, which has no gradient in a "
                f"{type(self.autoencoder).__name__}, so that it would change nothing: give sparsity=() where k latents "
                f"are kept, else sparsity=({l1},) (sae.sparsity)"
            )


_PLAIN = ("site", "width", "steps", "batch_size", "seed", "data_seed", "site_out", "dead_tokens")
_RUN_FIELDS = tuple(field.name for field in dataclasses.fields(Run))
