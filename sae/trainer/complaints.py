"""What is off about a run, in words, with what to do: before its first step, while it goes on, and at its end."""

from collections.abc import Mapping, Sequence

from sae.recipes import TrainConfig


class TrainingWarning(UserWarning):
    """Something about a run is off; the message says what, and what to do."""


FAR = 1.2  # times the target, or less than the target by that: an L0 that a run must not end with unsaid
_SHORTEST = "or use the recipe short_run, whose warm-ups are shares of the run"


def beforehand(config: TrainConfig) -> dict[str, str]:
    """Returns what a config alone says will go wrong, by kind; empty when nothing does.

    Args:
      config: with a number in every field (`TrainConfig.resolve`).

    Example:
      >>> list(beforehand(TrainConfig("s", 64, steps=100).resolve()))
      ['coefficient_warmup', 'learning_rate_warmup']
    """
    steps, found = config.steps, {}
    if config.coefficient_warmup >= steps:
        found["coefficient_warmup"] = (
            f"lambda is warmed up over {config.coefficient_warmup} steps, and the run has {steps}: it never has its "
            f"full strength. Lower coefficient_warmup, {_SHORTEST}"
        )
    warmup, decay = config.learning_rate_warmup, config.learning_rate_decay
    if warmup >= steps:
        found["learning_rate_warmup"] = (
            f"the learning rate is warmed up over {warmup} steps, and the run has {steps}: it never reaches "
            f"{config.learning_rate:g}. Lower learning_rate_warmup, {_SHORTEST}"
        )
    elif decay and warmup + decay > steps:
        found["learning_rate_decay"] = (
            f"the learning rate is warmed up over {warmup} steps and decays over the last {decay}, and the run has "
            f"{steps}: it never reaches {config.learning_rate:g}. Lower learning_rate_decay, {_SHORTEST}"
        )
    tokens = steps * config.batch_size
    if config.revival and config.dead_tokens >= tokens:
        found["revival"] = (
            f"latents are pulled back once they were silent for {config.dead_tokens:,} tokens, and the run has "
            f"{tokens:,}: none ever is. Lower dead_tokens, {_SHORTEST}"
        )
    return found


def complaints(config: TrainConfig, records: Sequence[Mapping]) -> dict[str, str]:
    """Returns what is wrong with a run by kind, from its records so far; empty when nothing is.

    At the end of a run everything is said, however short it was. Before, nothing is said in the first fifth, and
    nothing of L0, FVU and dead latents before lambda has its full strength.

    Args:
      config: with a number in every field (`TrainConfig.resolve`).
      records: of this config alone.
    """
    if not records:
        return {}
    last = records[-1]
    ended = last["step"] + 1 >= config.steps
    if not ended and last["step"] < config.steps // 5:
        return {}
    found = _of_thresholds(config, last)
    if ended or last["step"] >= config.coefficient_warmup:
        found |= _of_l0(config, records, ended) | _of_fvu(config, records, ended) | _of_dead(config, last, ended)
    return found


def _of_thresholds(config: TrainConfig, last: Mapping) -> dict[str, str]:
    found = {}
    if last["threshold_moved"] < 0.01:
        found["thresholds"] = (
            f"the thresholds have moved by {last['threshold_moved']:.2%} on average since the start: with a learning "
            f"rate of {config.threshold_learning_rate:g} they cannot adapt in {config.steps} steps. Raise "
            "threshold_learning_rate, or use the recipe short_run"
        )
    if last["window"] < 1e-6:
        found["window"] = (
            f"no pre-activations lie within the bandwidth {config.bandwidth:g} of their thresholds, so these get no "
            "gradient: raise bandwidth"
        )
    return found


def _of_l0(config: TrainConfig, records: Sequence[Mapping], ended: bool) -> dict[str, str]:
    l0, target = records[-1]["l0"], config.l0_target
    if target is None:
        if ended and l0 < 0.5:
            return {
                "l0": f"L0 is {l0:.2g}: on most tokens no latent fires. Lower coefficient, now {config.coefficient:g}"
            }
        if ended and l0 > 0.5 * config.width:
            return {
                "l0": f"L0 is {l0:.3g} of {config.width} latents, which is not sparse. Raise coefficient, or train on"
            }
        return {}
    off = l0 / target
    stopped = len(records) >= 3 and abs(off - records[-3]["l0"] / target) < 0.02
    far = not 1 / FAR <= off <= FAR
    if not (ended and far) and not (stopped and abs(off - 1) > 0.1):
        return {}
    advice = "raise coefficient" if off > 1 else "lower coefficient"
    if config.controller:
        advice += " or controller" if off > 1 else " or raise controller"
    if target < 1:
        advice = "give a target of at least 1, as fewer latents than one a token reconstruct nothing"
    elif not stopped:
        advice = f"train for more steps than {config.steps}, or {advice}"
    still = ", and it has stopped moving" if stopped else ""
    times = f"{off:,.0f}" if off >= 10 else f"{off:.2g}"
    return {
        "l0": f"L0 is {l0:.3g}, {target:g} was asked for{still}: {times} times the target. To come closer, {advice}"
    }


def _of_fvu(config: TrainConfig, records: Sequence[Mapping], ended: bool) -> dict[str, str]:
    last, first = records[-1], records[0]
    if last["fvu"] > 1 and (ended or last["fvu"] > 1.1 * first["fvu"]):
        advice = f"lower the learning rate, now {config.learning_rate:g}"
        if last["fvu"] <= 1.1 * first["fvu"]:
            advice = f"train for more steps than {config.steps}, or use the recipe short_run"
        return {
            "fvu": f"the FVU is {last['fvu']:.3g}, {first['fvu']:.3g} at the start: the reconstruction is worse than "
            f"the mean activation. {advice.capitalize()}"
        }
    warm = [r for r in records[:-1] if r["step"] >= config.coefficient_warmup]
    best = min(warm, key=lambda r: r["fvu"], default=last)
    # Fewer active latents are a reason for a larger error; where there are as many, training has come apart.
    if last["fvu"] > 2 * best["fvu"] + 0.05 and last["l0"] >= 0.8 * best["l0"]:
        return {
            "fvu": f"the FVU has risen from {best['fvu']:.3g} at step {best['step']} to {last['fvu']:.3g} with as many "
            f"active latents: training diverges. Lower the learning rate, now {config.learning_rate:g}"
        }
    return {}


def _of_dead(config: TrainConfig, last: Mapping, ended: bool) -> dict[str, str]:
    # Before the end, only once silence has lasted as long as the config says; at the end, over what the run has seen.
    if last["dead"] <= 0.1 * config.width or not (ended or last["dead_tokens"] >= config.dead_tokens):
        return {}
    return {
        "dead": f"{last['dead']} of {config.width} latents ({last['dead'] / config.width:.0%}) are dead, silent for "
        f"the last {last['dead_tokens']:,} tokens: {'raise' if config.revival else 'set'} revival, lower the learning "
        "rate or the width, or train on more tokens"
    }
