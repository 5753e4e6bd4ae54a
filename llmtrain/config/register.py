"""Puts the schemas into Hydra's ConfigStore, where the YAML files of `conf/` extend them.

`conf/model/llama_30m.yaml` starts with `defaults: [schema_llama, _self_]`.
"""

from functools import cache

from hydra.core.config_store import ConfigStore

from llmtrain.config.store import PLAIN_SCHEMAS, ROOTS, SCHEMAS


@cache  # the store is the process's, and it takes a third of a composition
def register() -> None:
    """Register every schema: `<group>/schema_<name>`, `<group>/schema`, and `schema_<command>`."""
    store = ConfigStore.instance()
    for group, choices in SCHEMAS.items():
        for name, schema in choices.items():
            store.store(group=group, name=f"schema_{name}", node=schema)
    for group, schema in PLAIN_SCHEMAS.items():
        store.store(group=group, name="schema", node=schema)
    for command, schema in ROOTS.items():
        store.store(name=f"schema_{command}", node=schema)
