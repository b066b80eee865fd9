import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError, DataError
from evomerge.evaluation.batching import Limits
from evomerge.evaluation.exact_match import ExactMatch
from evomerge.evaluation.generation import generate, plan_prompts
from evomerge.evaluation.multiple_choice import MultipleChoice
from evomerge.testing import check_evaluator

HEADER = "the quick fox and dog "
PROMPTS = [HEADER + rest for rest in ("a", "abc the", "then", "q and then some", "zz:", "x")]
N = len(PROMPTS)
CHAT = "{{ '<s>' }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[answer]"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@settings(
    deadline=None,
    max_examples=8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    wanted=st.lists(st.integers(0, N - 1), min_size=1, max_size=6),
    tokens=st.sampled_from(["auto", 1, 40]),
    rows=st.sampled_from([None, 1, 4]),
)
def test_answers_are_those_of_each_prompt_alone(request, name, wanted, tokens, rows):
    subject = request.getfixturevalue(name)
    plan = plan_prompts(subject, PROMPTS, max_new_tokens=6)
    assert plan.n_header >= 19
    full = subject.prepared(
        (name, "alone"),
        lambda: [subject.generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS],
    )
    found = generate(subject, plan, wanted, limits=Limits(tokens, rows), max_new_tokens=6)
    assert found == [full[i] for i in wanted]


def test_a_static_cache_gives_the_same_answers(llama):
    plan = plan_prompts(llama, PROMPTS, max_new_tokens=6)
    settings = {"limits": Limits(), "max_new_tokens": 6}
    static = generate(llama, plan, range(N), **settings, cache="static")
    assert static == generate(llama, plan, range(N), **settings)


def test_a_stop_string_ends_generation_early(llama, monkeypatch):
    answer = llama.generate(["the quick"], max_new_tokens=12)[0]
    calls = []
    inner = llama.model.forward
    monkeypatch.setattr(llama.model, "forward", lambda *a, **k: calls.append(1) or inner(*a, **k))
    assert llama.generate(["the quick"], max_new_tokens=12, stop=[answer[0]]) == [""]
    assert len(calls) < 12


def rows_file(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_filters_and_groups_reach_the_score(tmp_path, llama):
    own = llama.generate(["the quick"], max_new_tokens=6)[0]
    path = rows_file(tmp_path / "d.jsonl", [{"prompt": "the quick", "answer": own.upper()}])
    assert ExactMatch(examples=path, max_new_tokens=6).evaluate(llama) == [0.0]
    lower = ExactMatch(examples=path, max_new_tokens=6, filters=("lowercase",))
    assert lower.evaluate(llama) == [1.0]
    with pytest.raises(ConfigError, match=r"exact_match: 'lower' is not a filter.*lowercase"):
        ExactMatch(examples=path, filters=("lower",))
    with pytest.raises(ConfigError, match=r"exact_match: group is 2, but the pattern has 0, 1"):
        ExactMatch(examples=path, pattern="(a)", group=2)


def test_a_chat_template_frames_the_prompt_once(tmp_path, llama):
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT)
    framed = "[system] be brief\n[user] the quick\n[answer]"
    own = llama.generate([framed], max_new_tokens=6)[0]
    path = rows_file(tmp_path / "d.jsonl", [{"prompt": "the quick", "answer": own}])
    chat = {"chat_template": True, "chat_template_file": template, "system_prompt": "be brief"}
    evaluator = ExactMatch(examples=path, max_new_tokens=6, **chat)
    assert evaluator.evaluate(llama) == [1.0]
    check_evaluator(evaluator, llama)
    plain = ExactMatch(examples=path, max_new_tokens=6)
    assert evaluator.example_digests() != plain.example_digests()
    row = {"prompt": "q", "options": [" a", " b"], "gold": 0}
    choice = MultipleChoice(examples=rows_file(tmp_path / "c.jsonl", [row]), **chat)
    check_evaluator(choice, llama)
    by_hand = "[system] be brief\n[user] q\n[answer]"
    np.testing.assert_allclose(
        choice.probe(llama, np.array([0])),
        llama.option_logprobs([by_hand], [[" a", " b"]])[0],
        rtol=1e-5,
    )
    before = evaluator.example_digests()
    template.write_text(CHAT + "!")
    assert evaluator.example_digests() != before


def test_chat_settings_and_templates_that_cannot_work_are_errors(tmp_path, llama):
    path = rows_file(tmp_path / "d.jsonl", [{"prompt": "p", "answer": "a"}])
    with pytest.raises(ConfigError, match="system_prompt needs `chat_template: true`"):
        ExactMatch(examples=path, system_prompt="x")
    with pytest.raises(ConfigError, match="tokenizer has no chat template"):
        ExactMatch(examples=path, chat_template=True).evaluate(llama)
    template = tmp_path / "chat.jinja"
    for text in ("{% for %}", "{{ raise_exception('no system') }}", "{{ ''.__class__.mro() }}"):
        template.write_text(text)
        with pytest.raises(DataError, match=r"chat.jinja: cannot be filled in"):
            ExactMatch(examples=path, chat_template=True, chat_template_file=template).evaluate(
                llama
            )
