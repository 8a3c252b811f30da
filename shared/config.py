"""One strict YAML file per command, checked by pydantic before any work starts.

Not for the configs themselves: each command declares its own fields. Paths in a file are relative to that file; paths
given with --set are relative to the working directory, as anything typed at a shell.
"""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, ValidationInfo

from shared.errors import UsageError


class StrictModel(BaseModel):
    """A config section: unknown keys are errors, and nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class _FromShell(str):
    """A string that came from --set: its paths are relative to the working directory."""


def _absolute(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, (str, Path)) or info.context is None:
        return value
    base = Path.cwd() if isinstance(value, _FromShell) else info.context["base"]
    return Path(base, Path(value).expanduser()).resolve()


def _path_or_id(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, str) and value.startswith(("./", "../", "/", "~")):
        return str(_absolute(value, info))
    return value


ConfigPath = Annotated[Path, BeforeValidator(_absolute)]
"""A local path, absolute once loaded."""

ModelRef = Annotated[str, BeforeValidator(_path_or_id)]
"""A model: `./x`, `../x`, `/x` and `~/x` are directories (absolute once loaded), anything else is a hub id."""


class _Loader(yaml.SafeLoader):
    """Safe YAML with the numbers of YAML 1.2 (5e-5 is a number) and no duplicate keys."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _unique_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    doubled = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
    if doubled is not None:
        raise yaml.YAMLError(f"key '{doubled}' stands twice, line {node.start_mark.line + 1}")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse_yaml(text: str, name: str) -> Any:
    """Parse YAML text; `name` is what an error calls it.

    Raises:
        UsageError: not YAML, or a key stands twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader subclass
    except yaml.YAMLError as error:
        raise UsageError(name, expected="valid YAML", got=str(error), do="correct the line") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, not yet checked against any model.

    Raises:
        UsageError: no such file, not YAML, or not a mapping.
    """
    if not path.is_file():
        raise UsageError(str(path), expected="a YAML config file", got="no such file", do="check the path")
    data = parse_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(data, dict):
        raise UsageError(
            str(path), expected="a mapping of keys", got=type(data).__name__, do="see the README's configs"
        )
    return data


def load_config(model: type[ConfigT], path: Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read, override and check a config.

    Args:
        model: the command's pydantic model.
        path: the YAML file.
        overrides: `a.b=c` each; the value is parsed as YAML.
    Raises:
        UsageError: any mistake, with the key and the nearest known one.
    """
    data = read_config_file(path)
    for override in overrides:
        apply_override(data, override)
    return check_config(model, data, base=path.resolve().parent, name=str(path))


def check_config(model: type[ConfigT], data: dict[str, Any], *, base: Path, name: str) -> ConfigT:
    """Check a mapping against `model`; relative paths start at `base`; `name` stands in errors."""
    try:
        return model.model_validate(data, context={"base": base})
    except ValidationError as error:
        raise _first_mistake(model, error, name) from None


def apply_override(data: dict[str, Any], override: str) -> None:
    """Put `a.b=c`, as --set has it, into a config that is not yet checked.

    Raises:
        UsageError: no key, no "=", or a value that is not YAML.
    """
    key, equals, value = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {override}", expected="a.b=c", got=override, do="write the key, '=', the value")
    *parents, last = key.split(".")
    place = data
    for parent in parents:
        inner = place.get(parent)
        place[parent] = place = dict(inner) if isinstance(inner, dict) else {}
    place[last] = _from_shell(parse_yaml(value, f"--set {override}"))


def _from_shell(value: Any) -> Any:
    if isinstance(value, str):
        return _FromShell(value)
    if isinstance(value, list):
        return [_from_shell(item) for item in value]
    if isinstance(value, dict):
        return {key: _from_shell(item) for key, item in value.items()}
    return value


def _first_mistake(model: type[BaseModel], error: ValidationError, name: str) -> UsageError:
    """One line for the first mistake; an unknown key comes first, since it often explains the others."""
    mistakes = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    first = mistakes[0]
    more = f" ({len(mistakes) - 1} more mistakes after it)" if len(mistakes) > 1 else ""
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(model, first["loc"][:-1]))
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        do = f"did you mean '{near[0]}'?" if near else "remove it"
        return UsageError(f"{name}: unknown key '{key}'", expected="one of " + ", ".join(known), do=do + more)
    if first["type"] == "missing":
        return UsageError(f"{name}: key '{key}'", expected="a value", got="nothing", do="add the key" + more)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    got = "" if isinstance(first["input"], dict) else repr(first["input"])
    where = f"{name}: key '{key}'" if key else name
    return UsageError(where, expected=message, got=got, do="correct the value" + more)


def _known_keys(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    """Keys known at `location`: walk the annotations, through lists, unions and Annotated."""
    places: list[Any] = [model]
    for part in location:
        inner: list[Any] = []
        for place in _models_in(places):
            field = place.model_fields.get(str(part))
            inner += [field.annotation] if field is not None else []
        if inner:
            places = inner  # a list index or a union's tag names no field: stay where we are
    return {field.alias or name for place in _models_in(places) for name, field in place.model_fields.items()}


def _models_in(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    found: list[type[BaseModel]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        elif typing.get_origin(annotation) in (Union, types.UnionType, list, tuple, dict, Annotated):
            found += _models_in([inner for inner in typing.get_args(annotation) if inner is not Ellipsis])
    return found


def schema_text(model: type[BaseModel]) -> str:
    """The JSON Schema of a config, for editors (docs/schemas/)."""
    return json.dumps(model.model_json_schema(), indent=2, sort_keys=True) + "\n"
