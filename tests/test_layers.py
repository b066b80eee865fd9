"""Rules about the package's own text that import-linter cannot check."""

import ast
import re
from pathlib import Path

import pytest

import evomerge

PACKAGE = Path(evomerge.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 420


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def words(path: Path) -> list[tuple[int, str]]:
    """Return (line, text) of every name and string, docstrings and comments left out."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                found.append((node.lineno, node.value))
        elif isinstance(node, ast.Attribute):
            found.append((node.lineno, node.attr))
        elif isinstance(node, ast.Name):
            found.append((node.lineno, node.id))
        elif isinstance(node, ast.arg | ast.keyword):
            found.append((node.lineno, node.arg or ""))
    return found


def imported(path: Path) -> set[str]:
    """Return the top-level packages a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add((node.module or "").partition(".")[0])
    return found


def test_only_placement_names_cuda():
    where = {
        f"{name_of(path)}:{line}"
        for path in FILES
        for line, text in words(path)
        if "cuda" in text.lower() and name_of(path) != "runtime/placement.py"
    }
    assert not where


def test_only_the_pool_and_the_jobs_import_ray():
    assert {name_of(path) for path in FILES if "ray" in imported(path)} == {
        "runtime/ray_cluster.py",
        "runtime/ray_jobs.py",
        "runtime/ray_pool.py",
    }


def test_pickle_only_moves_a_function_to_our_own_workers():
    allowed = {"runtime/ray_pool.py", "runtime/scorer_actor.py"}
    users = {
        name_of(path)
        for path in FILES
        if imported(path) & {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    }
    assert users <= allowed


FORBIDDEN = {
    "allow_pickle": r"allow_pickle\s*=\s*(?!False\b)",
    "torch.load": r"\btorch\.load\s*\(",
    "torch.save": r"\btorch\.save\s*\(",
    "eval": r"(?<![\w.])eval\s*\(",
    "exec": r"(?<![\w.])exec\s*\(",
    "unsafe YAML": r"yaml\.(?:unsafe_load|full_load|UnsafeLoader|FullLoader)",
    "shell": r"shell\s*=\s*True|os\.system\s*\(",
    "a breakpoint": r"\bbreakpoint\s*\(|import pdb",
}


# Inside the sandbox, which is there to run what a model wrote; and no text at all, which resets a
# flag of the interpreter.
MAY = {"exec": {"evaluation/sandbox.py", "cli/interrupts.py"}}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_runs_what_it_reads(what):
    pattern = re.compile(FORBIDDEN[what], re.MULTILINE)
    found = {name_of(path) for path in FILES if pattern.search(path.read_text())}
    assert found == MAY.get(what, set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_too_long_to_read(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_no_module_is_called_after_nothing():
    vague = {"utils", "helpers", "base", "common", "misc", "manager"}
    assert not {name_of(path) for path in FILES if path.stem in vague}


def test_every_module_says_what_it_is():
    silent = {name_of(p) for p in FILES if not ast.get_docstring(ast.parse(p.read_text()))}
    assert not silent
