"""Charts and tables of a report as files for a thesis, and a document that shows how to include them."""

from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd

from ..files import project_path, replacing
from .figures.write import write_figures
from .markdown import comparison_table, every_run_table, runs_table
from .ranking import overall, top
from .sentences import conditions
from .table import Table

DOCUMENT = "thesis.tex"
LATEX = str.maketrans({"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}",
                       "_": r"\_\allowbreak{}", "±": r"$\pm$", **{mark: f"\\{mark}" for mark in "&%$#{}"}})
PAGE = r"""\documentclass[a4paper]{{article}}
\usepackage[utf8]{{inputenc}}
\usepackage[margin=25mm]{{geometry}}
\usepackage{{array,booktabs,graphicx,longtable}}
\newcolumntype{{L}}[1]{{>{{\raggedright\arraybackslash}}p{{\dimexpr #1\linewidth-2\tabcolsep\relax}}}}
\setlength{{\emergencystretch}}{{3em}}
\setlength{{\tabcolsep}}{{4pt}}
\begin{{document}}
\setlength{{\LTcapwidth}}{{\linewidth}}
{body}
\end{{document}}
"""
FIGURE = r"""
\begin{{figure}}[htbp]
  \centering
  \includegraphics[scale=0.85]{{figures/{name}.pdf}}
  \caption{{{caption}}}
  \label{{fig:{name}}}
\end{{figure}}"""


def write_thesis(table: Table, folder: str | Path, images=None, others: Sequence[Table] = (),
                 x: str = "minutes") -> Path:
    """Write figures/NAME.pdf without titles, tables/NAME.csv and NAME.tex, and a document with all of them.

    Returns the document's path, in `folder`; the figures' messages are its captions. images, others, x: as for
    write_figures.
    """
    folder = project_path(folder)
    with redirect_stdout(None):  # the report has said what is left out
        figures = write_figures(table, folder / "figures", images=images, others=others, x=x, titles=False)
    parts = [latex(f"{table.name}. {conditions(table)}")]
    parts += [FIGURE.format(name=path.stem, caption=latex(message)) for path, message in figures.items()]
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, caption, rows in report_tables(table, others):
        if len(rows):
            rows.to_csv(folder / "tables" / f"{name}.csv", index=False)
            text = latex_table(rows, caption=latex(caption), label=f"tab:{name}")
            (folder / "tables" / f"{name}.tex").write_text(text, encoding="utf-8")
            parts.append(f"\n{{\\footnotesize\\input{{tables/{name}}}}}")
    with replacing(folder / DOCUMENT) as part:
        part.write_text(PAGE.format(body="\n".join(parts)), encoding="utf-8")
    return folder / DOCUMENT


def report_tables(table: Table, others: Sequence[Table]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """The report's tables: file name, caption, and the cells as texts."""
    ranked = f"ranked by {table.ranking}."
    for model, look in table.looks.items():
        best = top(table, model)
        yield f"{table.stem(model)}_top5", f"{look.label}: the best runs, {ranked}", runs_table(table, best)
    if len(table.looks) > 1:
        yield "overall_top5", f"The best run of each model, {ranked}", runs_table(table, overall(table))
    yield "every_run", "What each run took and reached.", every_run_table(table)
    for number, other in enumerate(others, 2):
        caption = f"Test accuracies of {other.name} and {table.name}, where they differ most."
        yield f"comparison_{number}", caption, comparison_table(other, table)


def latex(text: str) -> str:
    """Text with LaTeX's special characters escaped, and room for a line break after underscores."""
    return text.replace("`", "").translate(LATEX)


def latex_table(rows: pd.DataFrame, **options) -> str:
    """A table as wide as the text that may go over pages, with booktabs' rules; options: as for DataFrame.to_latex.

    A column has room for its longest word. Its type, L{fraction of the width}, is defined in the document.
    """
    words = [max(len(word) for text in (head.replace("_", " "), *rows[head]) for word in text.split())
             for head in rows]
    letters = [min(most, 24) + 5 for most in words]  # names of runs break; room for capitals and the gap
    columns = "".join(f"L{{{each / sum(letters):.3f}}}" for each in letters)
    return rows.map(latex).rename(columns=latex).to_latex(
        index=False, longtable=True, column_format=f"@{{}}{columns}@{{}}", **options)
