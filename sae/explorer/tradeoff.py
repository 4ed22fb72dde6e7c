"""The picture of the trade-off between sparsity and fidelity."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mishax_lite.whole_files import replacing
from sae.evaluation.fidelity import Metrics

# Checked here, before hours of measuring what is to be drawn; imported where it draws, since that takes a second.
if importlib.util.find_spec("matplotlib") is None:
    raise ModuleNotFoundError(
        "the picture of the trade-off needs the package matplotlib: pip install matplotlib (the extra `pages`)",
        name="matplotlib",
    )


def draw(metrics: Sequence[Metrics], path: Path, title: str) -> None:
    """Writes a picture of L0 against loss recovered, and against FVU, with a line for each (site, width).

    Args:
      metrics: of each autoencoder.
      path: of the PNG file.
      title: of the picture.
    """
    # The figure is made without pyplot, which keeps global state and may ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, ScalarFormatter

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2)
    lines: dict[tuple[str, int], list[Metrics]] = {}
    for m in metrics:
        lines.setdefault((m.site, m.width), []).append(m)
    for axis, field, name in zip(axes, ("loss_recovered", "fvu"), ("loss recovered", "FVU"), strict=True):
        for (site, width), points in lines.items():
            points = sorted(points, key=lambda m: m.l0)
            label = _plain(f"{site}, {width} latents")
            axis.plot([m.l0 for m in points], [getattr(m, field) for m in points], "o-", label=label)
        axis.set_xscale("log")
        axis.set_xlabel("L0 (active latents per token)")
        axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 4.0, 6.0)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.minorticks_off()
        axis.margins(x=0.1)
        axis.set_ylabel(name)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.suptitle(_plain(title))
    with replacing(path) as new:
        figure.savefig(new, format="png", dpi=110)


def _plain(text: str) -> str:
    """Returns a text that matplotlib shows as it is: between two dollars it would read formulas."""
    return text.replace("$", r"\$")
