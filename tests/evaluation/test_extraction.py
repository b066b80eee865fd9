import pytest

from evomerge.errors import ConfigError
from evomerge.evaluation.extraction import Extraction


@pytest.mark.parametrize(
    ("settings", "text", "found"),
    [
        ({}, "  a b \n", "a b"),
        ({"pattern": r"\d+"}, "1 and 22", "22"),
        ({"pattern": r"\d+", "match": "first"}, "1 and 22", "1"),
        ({"pattern": r"(\w+)=(\d+)"}, "x=1 y=2", "y"),
        ({"pattern": r"(\w+)=(\d+)", "group": 2}, "x=1 y=2", "2"),
        ({"pattern": r"(\w+)=(\d+)", "group": 0}, "x=1 y=2", "y=2"),
        ({"pattern": r"(?P<n>\d+)!", "group": "n"}, "3! 4?", "3"),
        ({"pattern": r"\d+"}, "none", None),
        ({"filters": ("last_number",)}, "so 7, then 1,234.50 dollars.", "1234.5"),
        ({"filters": ("last_number",)}, "it is 18.", "18"),
        ({"filters": ("last_number",)}, "from -3 to -.5", "-.5"),
        ({"filters": ("last_number",)}, "2.00", "2"),
        ({"filters": ("last_number",)}, "100", "100"),
        ({"filters": ("last_number",)}, "no digits", None),
        ({"filters": ("first_line", "lowercase")}, "\n Yes\nNo", "yes"),
        ({"filters": ("no_punctuation", "no_spaces")}, "(a, b)", "ab"),
        ({"pattern": "A: (.*)", "filters": ("last_number",)}, "9 A: 3 of 4", "4"),
    ],
)
def test_extraction_finds(settings, text, found):
    assert Extraction(**settings).find(text) == found


def test_an_answer_without_a_match_is_wrong_and_a_reference_counts_as_it_is():
    number = Extraction(filters=("last_number",))
    assert number.is_right("so 42.0", "42")
    assert number.is_right("I say 1,000", "#### 1000")
    assert not number.is_right("nothing", "nothing")
    assert Extraction(pattern=r"= (\w+)").is_right("x = yes", " yes ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "("}, "not a regular expression"),
        ({"pattern": "(a)", "group": "name"}, "group is 'name', but the pattern has 0, 1"),
        ({"match": "middle"}, "known: last, first"),
        ({"filters": ("last",)}, "Did you mean 'last_number'"),
    ],
)
def test_bad_settings_are_config_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        Extraction(**settings)
