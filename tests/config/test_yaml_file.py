"""YAML in: what is wrong is said with its line, whatever PyYAML makes of it."""

import pytest

from evomerge.config.yaml_file import parse_mapping
from evomerge.errors import ConfigError


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("!!timestamp soon", "'soon' is not of type timestamp"),
        ("!!bool maybe", "'maybe' is not of type bool"),
        ("!!int ''", "'' is not of type int"),
        ("!!float many", "'many' is not of type float"),
        ("2020-13-45", "'2020-13-45' is not of type timestamp"),
        ("[1", "expected"),
        ("{b: 1, b: 2}", "key 'b' is given twice"),
        ("&x [*x]", "anchors and aliases are not supported"),
    ],
)
def test_the_line_of_a_wrong_value_is_named(value, message):
    with pytest.raises(ConfigError, match=r"f\.yaml: line [23]: ") as error:
        parse_mapping(f"first: 1\nsecond: {value}\n", "f.yaml")
    assert message in str(error.value)
