"""The results notebook, executed without JupyterLab, with its HTML."""

import re
from html import escape
from pathlib import Path

from ..batch.launch import execute_notebook
from ..files import project_path, replacing
from .figures.studies import check_x
from .knobs import compare
from .table import read_table

STYLE = """<style>
table { display: block; max-width: 100%; overflow-x: auto; }
nav { margin: 1em 7em; } nav a { display: block; } nav .h3 { margin-left: 2em; }
</style>"""


def make_report(parameters: dict, folder: str) -> Path:
    """Execute the results notebook into `folder` (empty: the table's), write results.html beside it; return its path.

    Raises InputError, with nothing written, for tables that can't be used.
    """
    check_x(parameters["x"])
    table = read_table(parameters["runs"], parameters["rank_by"], parameters["study"])
    for other in parameters["compare_with"]:
        compare(read_table(other), table)
    for place in filter(None, [parameters.get("thesis"), parameters["figures"]]):
        project_path(place).mkdir(parents=True, exist_ok=True)  # else it would be known in the end
    usual = table.folder / "beside_others" if parameters["compare_with"] else table.folder
    notebook = execute_notebook("results.ipynb", parameters, project_path(folder) if folder else usual)
    page = notebook.with_suffix(".html")
    with replacing(page) as part:
        part.write_text(as_html(notebook, f"Results of {escape(table.name)}"), encoding="utf-8")
    return page


def as_html(notebook: Path, title: str) -> str:
    """A notebook's outputs as a page, with a title, a list of its headings to jump to, and tables that scroll."""
    import nbformat  # these imports take a second, which bad input needn't wait for
    from nbconvert import HTMLExporter

    content = nbformat.read(notebook, 4)
    content.metadata["title"] = title
    text, _ = HTMLExporter(exclude_input=True).from_notebook_node(content)
    headings = re.findall(r'<h([23]) id="([^"]+)">(.*?)<a class="anchor-link"', text)
    links = "\n".join(f'<a class="h{level}" href="#{anchor}">{name}</a>' for level, anchor, name in headings)
    contents = f'<nav class="jp-RenderedHTMLCommon">\n<h1>{title}</h1>\n{links}\n</nav>'
    return text.replace("</head>", f"{STYLE}\n</head>", 1).replace("<main>", f"<main>\n{contents}", 1)
