"""Nothing in the tests is left over: what pytest doesn't collect is used, and no name stands for two things."""

import ast
from collections import Counter
from pathlib import Path

import pytest

TREES = {path: ast.parse(path.read_text()) for path in sorted(Path(__file__).parent.glob("*.py"))}


def words(tree):
    """Every name that is used: by itself, as an attribute, imported, as a fixture's argument, or in a text such as usefixtures'."""
    kinds = {ast.Name: "id", ast.Attribute: "attr", ast.alias: "name", ast.arg: "arg", ast.Constant: "value"}
    return {getattr(node, kinds[type(node)]) for node in ast.walk(tree) if type(node) in kinds}


USED = set().union(*map(words, TREES.values()))


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_every_function_is_a_test_or_used(path):
    tree, tests = TREES[path], path.stem.startswith("test_")
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        if function.name.startswith("test_"):
            assert tests and function in tree.body, f"{function.name} is not collected here"
        elif function in tree.body and "autouse=True" not in "".join(map(ast.unparse, function.decorator_list)):
            assert function.name in USED or function.name.startswith("pytest_"), f"{function.name} is neither a test nor used"
    names = Counter(node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef)))
    assert max(names.values(), default=1) == 1, names.most_common(1)
