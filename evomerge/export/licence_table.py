"""Licences of models: how each limits what a merge may be used for.

Ids are those of model cards on the Hugging Face hub, and names that cards with `license: other`
give (huggingface.co/docs/hub/repositories-licenses). A reader's summary, no legal advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

Kind = Literal["permissive", "conditional", "copyleft", "non-commercial", "no-derivatives"]

# From the loosest to the strictest: of several, the last one is the merge's.
_PERMISSIVE = (
    *("cc0-1.0", "unlicense", "wtfpl", "pddl"),
    *("zlib", "isc", "mit", "ncsa", "postgresql", "bsl-1.0"),
    *("bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "ms-pl", "afl-3.0", "ecl-2.0"),
    *("cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "odc-by", "cdla-permissive-2.0"),
    "apache-2.0",
)
_CONDITIONAL = (
    *("openrail", "openrail++", "bigscience-openrail-m", "creativeml-openrail-m"),
    *("bigscience-bloom-rail-1.0", "bigcode-openrail-m"),
    *("llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma"),
    *("qwen", "tongyi-qianwen", "deepseek", "yi-license", "nvidia-open-model-license"),
    *("falcon-llm-license", "stabilityai-ai-community"),
)
_COPYLEFT = (
    *("gpl", "gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "mpl-2.0"),
    *("cc-by-sa-3.0", "cc-by-sa-4.0", "eupl-1.1", "eupl-1.2", "osl-3.0", "epl-1.0", "epl-2.0"),
    *("gfdl", "odbl", "cdla-sharing-1.0"),
)
_NON_COMMERCIAL = (
    *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0"),
    *("cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"),
    *("fair-noncommercial-research-license", "apple-amlr", "h-research", "intel-research"),
    *("qwen-research", "mrl", "mnpl"),
)
_NO_DERIVATIVES = ("cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0")

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        **dict.fromkeys(_PERMISSIVE, "permissive"),
        **dict.fromkeys(_CONDITIONAL, "conditional"),
        **dict.fromkeys(_COPYLEFT, "copyleft"),
        **dict.fromkeys(_NON_COMMERCIAL, "non-commercial"),
        **dict.fromkeys(_NO_DERIVATIVES, "no-derivatives"),
    }
)
"""Licence -> its kind; a licence that is not here is unknown."""

PERMISSIVE_ORDER: Mapping[str, int] = MappingProxyType(
    {name: rank for rank, name in enumerate(_PERMISSIVE)}
)
"""Permissive licence -> its place from the loosest to the strictest."""

SHARED_UNDER: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "lgpl-2.1": frozenset({"gpl-2.0", "gpl-3.0", "agpl-3.0"}),
        "lgpl-3.0": frozenset({"gpl-3.0", "agpl-3.0"}),
        "gpl-3.0": frozenset({"agpl-3.0"}),
        "mpl-2.0": frozenset({"gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"}),
        "cc-by-sa-3.0": frozenset({"cc-by-sa-4.0"}),
        "cc-by-sa-4.0": frozenset({"gpl-3.0"}),
        "cc-by-nc-sa-2.0": frozenset({"cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0"}),
        "cc-by-nc-sa-3.0": frozenset({"cc-by-nc-sa-4.0"}),
        "eupl-1.1": frozenset({"eupl-1.2", "gpl-2.0", "osl-3.0", "epl-1.0"}),
        "eupl-1.2": frozenset({"gpl-2.0", "gpl-3.0", "agpl-3.0", "osl-3.0", "epl-1.0"}),
    }
)
"""Licence that asks for its own terms -> others that it lets a work made of both be shared under.

Source: gnu.org/licenses/license-list.html (and section 3 of the LGPL 2.1, section 13 of the GPL 3.0
and the AGPL 3.0), mpl 2.0 sections 1.12 and 3.3, creativecommons.org/share-your-work/
licensing-considerations/compatible-licenses, the appendices of the EUPL.
"""

UNVERSIONED = frozenset({"gpl", "lgpl"})
"""Licences whose cards do not say which version is meant."""

# Headings of licence texts, after runs of blanks became one blank; the first match counts.
HEADINGS: tuple[tuple[str, str], ...] = (
    (r"llama (2|3|3\.1|3\.2|3\.3|4) community license", r"llama\1"),
    (r"gemma terms of use", "gemma"),
    (r"qwen research license", "qwen-research"),
    (r"(?:tongyi qianwen|qwen) license agreement", "qwen"),
    (r"mistral ai research license", "mrl"),
    (r"mistral ai non-production license", "mnpl"),
    (r"attribution-noncommercial-noderivatives 4\.0", "cc-by-nc-nd-4.0"),
    (r"attribution-noncommercial-sharealike 4\.0", "cc-by-nc-sa-4.0"),
    (r"attribution-noncommercial 4\.0", "cc-by-nc-4.0"),
    (r"attribution-noderivatives 4\.0", "cc-by-nd-4.0"),
    (r"attribution-sharealike 4\.0", "cc-by-sa-4.0"),
    (r"attribution 4\.0 international", "cc-by-4.0"),
    (r"gnu affero general public license version 3", "agpl-3.0"),
    (r"gnu lesser general public license version 3", "lgpl-3.0"),
    (r"gnu general public license version 3", "gpl-3.0"),
    (r"gnu general public license version 2", "gpl-2.0"),
    (r"mozilla public license version 2\.0", "mpl-2.0"),
    (r"apache license version 2\.0", "apache-2.0"),
    (r"permission is hereby granted, free of charge", "mit"),
)
