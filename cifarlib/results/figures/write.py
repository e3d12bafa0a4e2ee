"""All the charts of a table of runs, written to a folder."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

from matplotlib.figure import Figure

from ...parts import ARCHITECTURES
from .. import ranking
from ..table import Table
from . import best, knobs, one_run, studies
from .style import FORMATS, message, save

PER_MODEL = {"top5": best.top5, "knobs": knobs.scores_by_knob, "heatmap": knobs.heatmap,
             "learning_curves": one_run.curves_of_best, "confusion": one_run.confusion_of_best}
PER_TABLE = {"overall_top5": best.overall_top5, "all_runs": best.all_runs, "finalists": best.finalists,
             "importance": knobs.importance, "expected_best": knobs.expected_best,
             "per_class": one_run.class_accuracies, "calibration": one_run.calibration}
OF_SEVERAL = ("curves", "comparison")
KINDS = (*PER_MODEL, "wrong", *PER_TABLE, "accuracy_by", *OF_SEVERAL)


def write_figures(table: Table, folder: str | Path, *kinds: str, images=None, others: Sequence[Table] = (),
                  x: str = "minutes", titles: bool = True) -> dict[Path, str]:
    """Write the figures of the given kinds (default: all of KINDS); returns their PNGs' paths, with their messages.

    Prints a line for figures that the table gives no ground for, and removes their files of an earlier table, those of
    other architectures too. images: what confidently_wrong takes; others: tables to compare with; x: what accuracies
    stand against; titles: whether the messages are in the images.
    """
    written, left_out = {}, {}
    absent = [f"{model}_{kind}" for model in ARCHITECTURES.keys() - table.looks.keys() for kind in kinds or KINDS]
    for kind in kinds or KINDS:
        for name, drawn in _drawn(table, kind, images, others, x):
            if isinstance(drawn, Figure):
                text = message(drawn)  # which `save` may take away
                written[save(drawn, folder, name, titles)] = text
            else:
                left_out.setdefault(drawn, []).append(name)
    for reason, names in left_out.items():
        print(f"Left out: {', '.join(names)} ({reason}).")
    for name in chain(absent, *left_out.values()):
        for suffix in FORMATS:
            Path(folder, f"{name}.{suffix}").unlink(missing_ok=True)
    return written


def further_charts(text: str, folder: Path, link: str) -> str:
    """Links to the charts in a folder that a page's text doesn't show; link: the folder, as the page sees it."""
    names = [path.stem for path in sorted(folder.glob("*.png"))
             if path.stem.endswith(KINDS) and f"/{path.name})" not in text]
    links = [f"[{name.replace('_', ' ')}]({link}/{name}.png)" for name in names]
    return f"Further charts: {', '.join(links)}." if links else ""


def _drawn(table: Table, kind: str, images=None, others: Sequence[Table] = (),
           x: str = "minutes") -> Iterator[tuple[str, Figure | str]]:
    """The figures of a kind, one by one: file name, and the figure or why there is none."""
    if kind in OF_SEVERAL and not others:
        yield kind, "no other table was given to compare with"
    elif kind == "comparison":
        for number, other in enumerate(others, 2):
            yield kind if len(others) == 1 else f"{kind}_{number}", best.comparison(other, table)
    elif kind == "curves":
        yield kind, studies.curves([table, *others])
    elif kind == "accuracy_by":
        yield kind, studies.accuracy_by([table, *others], x)
    elif kind in PER_TABLE:
        yield kind, PER_TABLE[kind](table) if len(ranking.ranked(table)) else "no run in this table can be ranked"
    else:
        draw = partial(one_run.confidently_wrong, images=images) if kind == "wrong" else PER_MODEL[kind]
        for model, look in table.looks.items():
            any_ranked = len(ranking.ranked(table, model)) > 0
            drawn = draw(table, model) if any_ranked else f"no ranked {look.label} run in this table"
            yield f"{table.stem(model)}_{kind}", drawn
