"""What the measurements say, as tables, Markdown and a chart."""

import statistics

import pandas
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


def machine_table(results: dict) -> pandas.DataFrame:
    """What the measurements were taken on, and its limits."""
    where, machine = results["conditions"], results["limits"]
    rows = {**where, "fp32, GFLOP/s": f"{machine['fp32']:,.0f}", "bf16, GFLOP/s": f"{machine['bf16']:,.0f}",
            "copy, GB/s": f"{machine['copy']:.1f}"}
    return pandas.DataFrame.from_dict(rows, orient="index", columns=["this machine"])


def table(results: dict) -> pandas.DataFrame:
    """A row a model: images per second of both ways, ratio, fraction of the machine's limit, loader's part, waits."""
    rows = {model: {"reference, img/s": spread(found["images_per_second"]["reference"], 1),
                    "ours, img/s": spread(found["images_per_second"]["ours"], 1), "ratio": spread(found["ratio"]),
                    "of the matrix rate": f"{limit_share(results, model):.0%}",
                    "loader": f"{found['loader_share']:.1%}",
                    "waits an epoch": "" if found["waits_per_epoch"] is None else str(found["waits_per_epoch"])}
            for model, found in results["models"].items()}
    frame = pandas.DataFrame.from_dict(rows, orient="index")
    return frame.loc[:, (frame != "").any()]


def readme_section(results: dict) -> str:
    """The measurements as Markdown, with their conditions."""
    frame, where, machine = table(results), results["conditions"], results["limits"]
    models = markdown([{"model": f"`{model}`", **row} for model, row in frame.to_dict("index").items()])
    together = "; ".join(f"{way['runs']} x {way['threads']}: {way['images_per_second']:,.0f}"
                         for way in results["at_once"]["ways"])
    start = results["start_up"]
    ratio = statistics.median(start["tiny_run"]) / statistics.median(start["imports"])
    forked = (f" Forked from a warm process, as a grid's are, it takes {spread(start['warm'], 1)} s, "
              f"{statistics.median(start['warm']) / statistics.median(start['tiny_run']):.0%} of that."
              if "warm" in start else "")
    sizes = listed(f"{found['images']:,} images ({model}, in batches of {found['batch_size']})"
                   for model, found in results["models"].items())
    return "\n".join([
        f"**Conditions:** {where['device']}, {where['cores']} cores, torch {where['torch']}, {where['dataset']}, ours "
        f"in {listed(precisions(results))}; {where['date']}, commit {where['commit']}. Its limits: "
        f"{machine['fp32']:,.0f} GFLOP/s in fp32, {machine['bf16']:,.0f} in bf16, copies at {machine['copy']:.1f} "
        "GB/s.", "", models, "",
        "Images per second: training images divided by the seconds of training and validation, median of the rounds "
        "(lowest to highest). The share of the matrix rate counts only multiplications that are carried out, not those "
        "that our convolutions save. Loader: the share of a training epoch spent on drawing, augmenting and "
        f"normalizing the images. A round trains {sizes}.", "",
        f"- **Runs at a time x threads of each**, {results['at_once']['model']}, images per second together: "
        f"{together}.",
        f"- **Start-up:** a tiny run through papermill takes {spread(start['tiny_run'], 1)} s, a notebook that only "
        f"imports {spread(start['imports'], 1)} s: {ratio:.2f} times.{forked}",
    ])


def write_results(results: dict, path: str) -> None:
    """As JSON, from the project's folder."""
    project_path(path).parent.mkdir(parents=True, exist_ok=True)
    write_json(project_path(path), results)
