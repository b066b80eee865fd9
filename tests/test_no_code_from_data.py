"""Nothing that is read is run: no eval, no pickles, no tags of YAML, no way out of a template."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import evomerge
from evomerge.config.yaml_file import parse_yaml
from evomerge.errors import ConfigError, DataError
from evomerge.evaluation.chat import Chat

PACKAGE = Path(evomerge.__file__).parent
FORBIDDEN = {
    "eval", "exec", "os.system", "os.popen", "marshal.loads", "marshal.load", "shelve.open",
    "pickle.load", "pickle.loads", "torch.load", "yaml.unsafe_load", "yaml.full_load",
    "joblib.load", "jinja2.Environment", "Environment",
}  # fmt: skip
ALLOWED = {
    # The factory of a worker, which the driver of the same search has pickled.
    ("runtime/scorer_actor.py", "pickle.loads"),
    # Of no text at all, which resets a flag of the interpreter.
    ("cli/interrupts.py", "exec('')"),
}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def faults(path: Path, name: str) -> list[str]:
    found = []
    for called, node in calls(path):
        words = {word.arg: ast.unparse(word.value) for word in node.keywords}
        allowed = {(name, called), (name, ast.unparse(node))} & ALLOWED
        is_bad = called in FORBIDDEN and not allowed
        is_bad |= called == "yaml.load" and words.get("Loader") != "_StrictLoader"
        is_bad |= words.get("allow_pickle") == "True"
        is_bad |= words.get("shell") == "True"
        is_bad |= words.get("trust_remote_code") == "True"
        if is_bad:
            found.append(f"{name}:{node.lineno}: {called}")
    return found


def test_no_module_runs_what_it_reads() -> None:
    modules = sorted(PACKAGE.rglob("*.py"))
    assert len(modules) > 200
    assert [f for path in modules for f in faults(path, path.relative_to(PACKAGE).as_posix())] == []


def test_what_is_allowed_is_allowed_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("exec('')\nexec(x)")
    assert faults(tmp_path / "x.py", "cli/interrupts.py") == ["cli/interrupts.py:2: exec"]
    assert len(faults(tmp_path / "x.py", "cli/main.py")) == 2


@pytest.mark.parametrize(
    "line",
    ["eval(x)", "pickle.loads(x)", "torch.load(x)", "yaml.load(x, Loader=yaml.Loader)", "np.load(x, allow_pickle=True)",
     "subprocess.run(x, shell=True)", "AutoModel.from_pretrained(x, trust_remote_code=True)"],
)  # fmt: skip
def test_each_of_these_would_be_found(line: str, tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(line)
    assert len(faults(tmp_path / "x.py", "x.py")) == 1


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system", "!!python/module:os",
     "!!python/object/new:pathlib.Path ['{}']", "!!python/tuple [1]", "!own 1"],
)  # fmt: skip
def test_tags_of_yaml_are_refused(tag: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        parse_yaml("name: " + tag.format(tmp_path / "made"), "c.yaml")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{ cycler.__init__.__globals__.os.system('touch MADE') }}",
        "{{ lipsum.__globals__['os'].popen('touch MADE').read() }}",
        "{{ self.__init__.__globals__.__builtins__.open('MADE', 'w') }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ ''['__class__'] }}{{ (''|attr('__class__')).mro() }}",
        "{{ raise_exception.__globals__['__builtins__']['open']('MADE', 'w') }}",
        "{% import 'os' as os %}{{ os.system('touch MADE') }}",
        "{% include '/etc/passwd' %}",
        "{{ messages.append(1) }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_chat_template_gets_nowhere(
    template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    class Model:
        folder = tmp_path
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, "a"))
        )

    monkeypatch.chdir(tmp_path)
    for text in ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", template):
        (tmp_path / "chat.jinja").write_text(text)
        chat = Chat(is_on=True, template_file=tmp_path / "chat.jinja")
        if text != template:
            assert chat.render(Model(), ["hello"]) == ["[hello]"]  # type: ignore[arg-type]
            continue
        with pytest.raises(DataError, match=r"chat\.jinja: cannot be filled in"):
            chat.render(Model(), ["hello"])  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chat.jinja"]
