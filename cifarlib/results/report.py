"""The results notebook, executed without JupyterLab, with its HTML."""

from pathlib import Path

from ..batch.launch import execute_notebook
from ..files import project_path, replacing
from .knobs import compare
from .table import read_table


def make_report(parameters: dict, folder: str) -> Path:
    """Execute the results notebook into `folder` (empty: the table's), write results.html beside it; return its path.

    Raises InputError, with nothing written, for tables that can't be used.
    """
    table = read_table(parameters["runs"], parameters["rank_by"], parameters["study"])
    if parameters["compare_with"]:
        compare(read_table(parameters["compare_with"]), table)
    notebook = execute_notebook("results.ipynb", parameters, project_path(folder) if folder else table.folder)
    from nbconvert import HTMLExporter  # its import takes a second, which bad input needn't wait for

    page = notebook.with_suffix(".html")
    text, _ = HTMLExporter(exclude_input=True).from_filename(str(notebook))
    with replacing(page) as part:
        part.write_text(text, encoding="utf-8")
    return page
