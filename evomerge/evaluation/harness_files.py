"""Finding a task of lm-evaluation-harness by name without indexing all of them.

The harness parses its 14,000 task files, some seconds of CPU time, before it knows a name. Here
the names are found by their line in the file, and only what is named is parsed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from evomerge.errors import ConfigError, DataError, first_line, nearest

# A line that begins with the key; a tag may also be a list in the lines below.
_NAME = re.compile(r"""^["']?(task|group)["']?:[ \t]*["']?([^\s"'#\[][^\n"'#]*)""", re.MULTILINE)
_TAGS = re.compile(r"""^["']?tag["']?:(.*(?:\n[ \t]*-[ \t].*)*)""", re.MULTILINE)


def task_file(name: str, include_path: Path | None) -> Path:
    """Return the YAML file of a task: of the user's folder first, else of the harness.

    Raises:
        ConfigError: Nothing has that name, or it names several tasks.
        DataError: `include_path` is not a folder, or the file is broken.
    """
    if include_path is not None and not include_path.is_dir():
        raise DataError(f"{include_path}: is not a folder; `include_path:` names one.")
    import lm_eval.tasks

    known: list[str] = []
    for folder in (include_path, Path(lm_eval.tasks.__file__).parent):
        names = _names(folder) if folder is not None else _Names({}, {}, {})
        if name in names.tasks:
            return names.tasks[name]
        if name in names.groups:
            _refuse_several("group", name, _members(read_task(names.groups[name])))
        if name in names.tags:
            _refuse_several("tag", name, names.tags[name])
        known += names.tasks
    where = "in lm-evaluation-harness" + (f" or {include_path}" if include_path else "")
    raise ConfigError(
        f"lm_eval: there is no task {name!r} {where}.{nearest(name, known)}{_broken(include_path)}"
    )


def read_task(path: Path) -> dict[str, Any]:
    """Return the settings of a task file with its includes; nothing is imported.

    Raises:
        DataError: The file, or one that it includes, is not a YAML mapping or is missing.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        return dict(load_yaml(path, resolve_func=False))
    except Exception as error:  # yaml, value and OS errors alike
        raise DataError(
            f"{path}: cannot be read as a task ({_one_line(error)}); correct the file."
        ) from error


def code_files(path: Path) -> tuple[Path, ...]:
    """Return the files that decide how a task scores: YAML files, Python files, local data."""
    from lm_eval.tasks._yaml_loader import load_yaml

    files, waiting = [], [path]
    while waiting:
        current = waiting.pop()
        files.append(current)
        included = load_yaml(current, resolve_func=False, recursive=False).get("include", ())
        names = [included] if isinstance(included, str) else included
        waiting += [current.parent / name for name in names]
    config = read_task(path)
    for text in _texts(config):
        # A function is the path of its module, a dot and its name.
        module = Path(text.rpartition(".")[0] + ".py")
        if module.is_absolute() and module.is_file():
            files.append(module)
    data = local_data(config, path).get("data_files", ())
    files += [file for file in map(Path, _texts(data)) if file.is_file()]
    return tuple(sorted({file.resolve() for file in files}))


def local_data(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return `dataset_kwargs` with data files beside the task's file as absolute paths.

    Differs from the harness, where they count from the working folder, which is another one in
    every worker; files that are not there are left as they are.
    """

    def absolute(value: Any) -> Any:
        if isinstance(value, str):
            beside = path.parent / value
            return str(beside.resolve()) if beside.is_file() else value
        if isinstance(value, Mapping):
            return {key: absolute(item) for key, item in value.items()}
        return [absolute(item) for item in value]

    keywords = dict(config.get("dataset_kwargs") or {})
    if keywords.get("data_files"):
        keywords["data_files"] = absolute(keywords["data_files"])
    return keywords


class _Names(NamedTuple):
    """What the task files of a folder define: tasks and groups with their file, tags with tasks."""

    tasks: dict[str, Path]
    groups: dict[str, Path]
    tags: dict[str, list[str]]


def _names(folder: Path) -> _Names:
    found = _Names({}, {}, {})
    for path in sorted(folder.rglob("*.yaml")):
        text = path.read_text(encoding="utf-8", errors="replace")
        named = {kind: name.strip() for kind, name in _NAME.findall(text)}
        if "group" in named:  # whose `task` is a list, or is passed over by the harness
            found.groups.setdefault(named["group"], path)
        elif "task" in named:
            found.tasks.setdefault(named["task"], path)
        for tag in re.findall(r"[^\s\"'\[\],-][^\s\"'\[\],]*", " ".join(_TAGS.findall(text))):
            found.tags.setdefault(tag, []).extend([named["task"]] if "task" in named else [])
    return found


def _members(group: Mapping[str, Any]) -> list[str]:
    items = group.get("task") or ()
    named = [item if isinstance(item, Mapping) else {"task": item} for item in items]
    return [str(item.get("task", item.get("group"))) for item in named]


def _refuse_several(kind: str, name: str, members: list[str]) -> NoReturn:
    shown = ", ".join(members[:8]) + (", …" if len(members) > 8 else "")
    raise ConfigError(
        f"lm_eval: {name!r} is a {kind} of {len(members)} tasks ({shown}); write one entry under "
        "`tasks:` for each that counts, and weigh them under `objectives:`."
    )


def _broken(include_path: Path | None) -> str:
    """Return what is wrong with the files of the user's folder that the harness passes over."""
    for path in sorted(include_path.rglob("*.yaml")) if include_path is not None else ():
        try:
            read_task(path)
        except DataError as error:
            return f" A file could not be read, perhaps that of the task: {error}"
    return ""


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(item)


def _one_line(error: Exception) -> str:
    """Return an error without its line breaks; YAML errors say in the last one where."""
    return " ".join(str(error).split()) or first_line(error)
