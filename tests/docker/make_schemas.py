"""Make `schemas/` anew: `python -m tests.docker.make_schemas KUBERAY COMPOSE_SPEC`.

The arguments are checkouts of github.com/ray-project/kuberay and github.com/compose-spec/compose-spec,
both Apache-2.0. Descriptions are left out, and of KubeRay's definitions the templates of pods, which
kubernetes-validate knows; what is left is made strict: a key that is not there is an error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).parent / "schemas"
_CRDS = "ray-operator/config/crd/bases/ray.io_{}.yaml"
_POD_TEMPLATES = ("template", "submitterPodTemplate")


def kuberay(checkout: Path) -> dict[str, Any]:
    """Return kind -> schema of its `spec`."""
    found = {}
    for kind, name in (("RayCluster", "rayclusters"), ("RayJob", "rayjobs")):
        crd = yaml.safe_load((checkout / _CRDS.format(name)).read_text())
        (version,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
        spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]
        found[kind] = strict(spec)
    found["RayJob"]["properties"]["rayClusterSpec"] = {"type": "object"}  # a RayCluster's spec
    return found


def strict(schema: Any) -> Any:
    """Return a schema without descriptions and templates of pods, that refuses unknown keys."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "properties"}
    if isinstance(made.get("description"), str):
        del made["description"]
    properties = schema.get("properties")
    if isinstance(properties, dict):
        made["properties"] = {
            name: {"type": "object"} if name in _POD_TEMPLATES else strict(value)
            for name, value in properties.items()
        }
        made.setdefault("additionalProperties", False)
    return made


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value)
        for key, value in schema.items()
        if not (key == "description" and isinstance(value, str))
    }


def main(kuberay_checkout: str, compose_checkout: str) -> None:
    compose = json.loads(Path(compose_checkout, "schema/compose-spec.json").read_text())
    for name, body in (
        ("kuberay", kuberay(Path(kuberay_checkout))),
        ("compose", without_descriptions(compose)),
    ):
        (SCHEMAS / f"{name}.json").write_text(json.dumps(body, indent=None, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
