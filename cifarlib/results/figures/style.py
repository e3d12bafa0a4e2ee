"""What the charts share: colours, titles, axes, and how they are saved."""

import io
import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from ...parts import Architecture
from .. import ranking
from ..table import Table

GREY, LIGHT = "#666666", "#DDDDDD"
# Okabe and Ito's, of runs or studies in turn.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
STYLE = {"font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 8,
         "xtick.labelsize": 8, "ytick.labelsize": 8, "axes.spines.top": False, "axes.spines.right": False,
         "axes.axisbelow": True, "axes.grid": True, "grid.color": "#E6E6E6", "legend.frameon": False,
         "hatch.color": "white", "hatch.linewidth": 0.8, "svg.hashsalt": "cifarlib", "pdf.fonttype": 42,
         "figure.dpi": 100}
FORMATS = ("png", "svg", "pdf")
WIDTH = 10  # inches
PRINTED = 0.72  # of a size, for a text 16 cm wide, where letters of 8 points are then still of 7
styled = plt.style.context(["default", STYLE])  # decorates a function that draws; the user's own settings wait outside


class Chart(Figure):
    """A figure that a notebook shows also where $MPLBACKEND, as on many clusters, names a backend that shows none."""

    def _repr_png_(self) -> bytes:
        with io.BytesIO() as file:
            self.savefig(file, format="png")  # whose layout fits already
            return file.getvalue()


@styled
def save(figure: Figure, folder: str | Path, name: str, titles: bool = True) -> Path:
    """Write NAME in each of FORMATS and return the PNG's path; the same figure gives the same bytes.

    Hence no date, and a fixed salt for the SVG's ids. titles: False leaves out what `titled` put on the figure, and
    draws it smaller, for print.
    """
    png, svg, pdf = (Path(folder) / f"{name}.{kind}" for kind in FORMATS)
    png.parent.mkdir(parents=True, exist_ok=True)
    if not titles:
        figure.suptitle("")
        figure.supxlabel("")
        figure.set_size_inches(PRINTED * figure.get_size_inches())
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:  # the layout's last digits differ from run to run, and the SVG's ids with them
        axes.set_position(np.round(axes.get_position(original=True).bounds, 6))
    figure.savefig(png, dpi=120, metadata={"Software": None})
    with Image.open(png) as picture:  # 256 colours look the same at a third of the size
        few = picture.convert("RGB").quantize(method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(png, optimize=True)
    figure.savefig(svg, metadata={"Date": None, "Creator": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Creator": None, "Producer": None})
    return png


def new_figure(height: float, rows: int = 1, columns: int = 1, width: float = WIDTH, **options):
    """(figure, its axes); the figure is closed in pyplot at once, so no notebook shows it twice."""
    size = {"figsize": (width, height), "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, FigureClass=Chart, **size, **options)
    plt.close(figure)
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    return figure, axes


def look_of(row: Architecture) -> dict[str, str]:
    """The marker and colour of a model, as matplotlib's functions take them."""
    return {"marker": row.marker, "color": row.colour}


def titled(figure: Figure, title: str, note: str = "", table: Table | None = None) -> Figure:
    """The figure with what it shows above it, and how to read it below.

    Data other than the usual are named first, unequal budgets of the table's runs last.
    """
    characters = int(figure.get_size_inches()[0] * 9.6)
    data = f"{table.data.label}. " if table and not table.usual_data else ""
    if table and (unequal := ranking.unequal_budgets(table)):
        note = f"{note} {unequal}".strip()
    title = data + title[0].upper() + title[1:]
    figure.suptitle(_wrapped(title, characters), x=0.01, ha="left", fontsize=11.5, fontweight="bold")
    if note:
        note = _wrapped(note[0].upper() + note[1:], int(characters * 1.75))
        figure.supxlabel(note, x=0.01, ha="left", fontsize=7.5, color=GREY)
    return figure


def message(figure: Figure) -> str:
    """What `titled` wrote on a figure, as one line."""
    title, note = (" ".join(text.split()) for text in (figure.get_suptitle(), figure.get_supxlabel()))
    return f"{title}. {note}" if note else f"{title}."


def _wrapped(text: str, most: int) -> str:
    """Lines of about equal length: no last line with a single word."""
    lines = len(textwrap.wrap(text, most))
    widths = range(max(1, len(text) // lines), most + 1)
    return next(textwrap.fill(text, width) for width in widths if len(textwrap.wrap(text, width)) == lines)


def percent_ticks(*sides, ticks: int = 5) -> None:
    """Round percentages, with the decimals they need, on the given x or y axes, which end at 0% and 100%."""
    for side in sides:
        low, high = side.get_view_interval()
        if low < 0 or high > 1:
            side.axes.set(**{f"{side.axis_name}lim": (max(low, 0), min(high, 1))})
        side.set_major_locator(MaxNLocator(ticks, steps=(1, 2, 5, 10)))
        side.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}%")


def legend(axis, **where) -> None:
    """Names what the axes show, by the markers alone where there are error bars; a single thing has its title."""
    handles, labels = axis.get_legend_handles_labels()
    handles = [handle[0] if isinstance(handle, ErrorbarContainer) else handle for handle in handles]
    if len(handles) > 1:
        axis.legend(handles, labels, **where)


def legend_above(axis) -> None:
    """In one line above the axes, where no point can lie."""
    legend(axis, loc="lower right", bbox_to_anchor=(1, 1), ncols=4, borderaxespad=0.2)


def jitter(n: int) -> np.ndarray:
    """The same sideways shifts each time, none for up to three points."""
    return np.random.default_rng(0).uniform(-0.27, 0.27, n) if n > 3 else np.zeros(n)


def whiskers(values, low, high) -> np.ndarray:
    """Lengths below and above, as errorbar takes them; none is negative, as rounding might have it."""
    return np.maximum([values - low, high - values], 0)


def log_ticks(axis) -> None:
    """A logarithmic x axis with plain numbers, a few where it spans little."""
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(MaxNLocator(5) if high < 5 * low else LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.minorticks_off()
