"""No pickle is ever loaded (I7): no module of the package imports anything that could."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hedge_pipeline

PACKAGE = Path(str(hedge_pipeline.__file__)).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
CALLS = {"read_pickle", "to_pickle", "load_pickle"}


def unpickling(source: str) -> set[str]:
    """Names in the code, comments and docstrings excluded, that read or write pickles."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & FORBIDDEN
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & FORBIDDEN
            found |= {alias.name for alias in node.names} & (FORBIDDEN | CALLS)
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & (FORBIDDEN | CALLS)
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.add("allow_pickle")
        elif isinstance(node, ast.Call) and node.args and _imports(node.func):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                found |= {str(name.value).split(".")[0]} & FORBIDDEN
    return found


def _imports(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name in ("import_module", "__import__")


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_can_load_a_pickle(path: Path) -> None:
    assert unpickling(path.read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "import joblib as j",
        "from cloudpickle import loads",
        "def f():\n    from pickle import load",
        "from pandas import read_pickle",
        "frame.to_pickle(path)",
        "np.load(path, allow_pickle=True)",
        "importlib.import_module('pickle')",
        "__import__('dill')",
    ],
)
def test_the_search_finds_every_way_in(code: str) -> None:
    assert unpickling(code)


def test_words_are_no_code() -> None:
    assert unpickling('"""No pickle, joblib or cloudpickle is used."""\n# pickle') == set()


def test_the_search_covers_the_learning_and_live_layers() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in SOURCES}
    assert {
        "store.py",
        "learning/shelf.py",
        "learning/training.py",
        "serving/predicting.py",
    } <= names
