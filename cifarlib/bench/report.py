"""What the measurements say, as Markdown and a chart."""

import statistics

from matplotlib.figure import Figure

from ..files import project_path, write_json
from ..parts import architectures
from ..results.figures.style import legend_above, new_figure, percent_ticks, styled, titled
from ..results.markdown import markdown
from ..words import listed


@styled
def chart(results: dict) -> Figure:
    """Speed of the plain reference and of this package, a pair of bars a model; and how near that is to the limit."""
    found, looks = results["models"], architectures(results["models"])
    figure, (left, right) = new_figure(1.6 + 0.75 * len(found), 1, 2, width_ratios=(2.2, 1), sharey=True)
    heads = []
    for y, (name, model) in enumerate(found.items()):
        look, fraction, (low, ratio, high) = looks[name], limit_share(results, name), extent(model["ratio"])
        heads.append(f"{look.label} {ratio:.1f}")
        left.barh(y - 0.17, 1, 0.3, color="#BBBBBB", label="plain reference" if y == 0 else None)
        left.barh(y + 0.17, ratio, 0.3, color=look.colour)
        left.plot([low, high], [y + 0.17] * 2, color="black", linewidth=1)
        for way, end, offset in (("reference", 1, -0.17), ("ours", high, 0.17)):
            speed = statistics.median(model["images_per_second"][way])
            text = f"{speed:,.0f}" if speed >= 100 else f"{speed:.3g}"
            left.annotate(f"{text} images/s", (end, y + offset), (5, 0), textcoords="offset points", va="center",
                          fontsize=8)
        right.barh(y, fraction, 0.5, color=look.colour)
        right.text(fraction + 0.015, y, f"{fraction:.0%}", va="center", fontsize=8)
    longest = max(1.0, *(max(model["ratio"]) for model in found.values()))
    left.set(xlabel="times the reference's speed, training and validation", xlim=(0, 1.25 * longest))
    left.set_yticks(range(len(found)), [looks[name].label for name in found])
    left.invert_yaxis()
    right.set(xlim=(0, 1.1), xlabel="share of the machine's own matrix rate")
    percent_ticks(right.xaxis)
    legend_above(left)
    rates = listed(f"{results['limits'][kind]:,.0f} GFLOP/s in {kind}" for kind in precisions(results))
    note = "Coloured: this package. Bars: medians of the rounds' ratios; black lines: lowest to highest. Matrix rate: "
    return titled(figure, f"times as fast as the plain reference: {listed(heads)}", f"{note}{rates}.")


def extent(values: list[float]) -> tuple[float, float, float]:
    """Lowest, median, highest."""
    return min(values), statistics.median(values), max(values)


def precisions(results: dict) -> list[str]:
    """Those that ours trained in."""
    return sorted({model["precision"] for model in results["models"].values()})


def spread(values: list[float], digits: int = 2) -> str:
    """The median with the lowest and the highest."""
    low, middle, high = (f"{value:,.{digits}f}" for value in extent(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def limit_share(results: dict, model: str) -> float:
    """The part of the machine's measured matrix rate, in the precision used, that our training and validation reach."""
    found = results["models"][model]
    reached = statistics.median(found["images_per_second"]["ours"]) * found["gflop_per_image"]
    return reached / results["limits"][found["precision"]]


def readme_section(results: dict) -> str:
    """The measurements as Markdown, with their conditions."""
    where, machine, start = results["conditions"], results["limits"], results["start_up"]
    rows = [{"Model": f"`{model}`",
             "Reference, images/s": spread(found["images_per_second"]["reference"], 1),
             "Ours, images/s": spread(found["images_per_second"]["ours"], 1),
             "Ratio": spread(found["ratio"]),
             "Of the matrix rate": f"{limit_share(results, model):.0%}",
             "Waits an epoch": "" if found["waits_per_epoch"] is None else str(found["waits_per_epoch"])}
            for model, found in results["models"].items()]
    together = "; ".join(f"{way['runs']} x {way['threads']}: {way['images_per_second']:,.0f}"
                         for way in results["at_once"]["ways"])
    forked = (f" Forked from a warm process, as a grid's are, it takes {spread(start['warm'], 1)} s, "
              f"{statistics.median(start['warm']) / statistics.median(start['tiny_run']):.0%} of that."
              if "warm" in start else "")
    sizes = listed(f"{found['images']:,} images ({model}, in batches of {found['batch_size']})"
                   for model, found in results["models"].items())
    return "\n".join([
        f"**Conditions:** {where['device']}, {where['cores']} cores, torch {where['torch']}, {where['dataset']}, ours "
        f"in {listed(precisions(results))}; {where['date']}, commit {where['commit']}. Products of large matrices: "
        f"{machine['fp32']:,.0f} GFLOP/s in fp32, {machine['bf16']:,.0f} in bf16.", "", markdown(rows), "",
        "Images per second: training images divided by the seconds of training and validation, median of the rounds "
        "(lowest to highest). The share of the matrix rate counts only multiplications that are carried out, not those "
        f"that our convolutions save. A round trains {sizes}.", "",
        f"- **Runs at a time x threads of each**, {results['at_once']['model']}, images per second together: "
        f"{together}.",
        f"- **Start-up:** a tiny run through papermill takes {spread(start['tiny_run'], 1)} s.{forked}",
    ])


def write_results(results: dict, path: str) -> None:
    """As JSON, from the project's folder."""
    project_path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(project_path(path), results)
