"""What a machine, or a container on one, has free."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.runtime import node_facts


def test_cached_files_of_a_container_count_as_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    contents = {
        "_MEMORY": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "_LIMIT": "1000000\n",
        "_USED": "900000\n",
        "_USED_FOR": "anon 200000\nfile 700000\ninactive_file 500000\nactive_file 150000\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        monkeypatch.setattr(node_facts, name, tmp_path / name)
    assert node_facts.free_memory() == 1_000_000 - (900_000 - 650_000)
    (tmp_path / "_LIMIT").write_text("max\n")
    assert node_facts.free_memory() == 8000 * 1024
