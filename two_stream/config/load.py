"""Reads settings from YAML and writes them as YAML. Errors name the file, key, value and what was expected."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from two_stream.config.schema import Experiment
from two_stream.errors import SettingsError

M = TypeVar("M", bound=BaseModel)

MOST_TEXT, MOST_NODES, MOST_DEPTH = 2**22, 1_000_000, 60
"""Limits of a settings file: bytes, values and nesting levels."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys."""

    def get_single_node(self) -> yaml.Node | None:
        """Return the document after checking its size with all aliases and merge keys expanded."""
        node = super().get_single_node()
        if node is not None and _expanded(node, {}, 0) > MOST_NODES:
            raise SettingsError(
                f"aliases and merge keys expand to more than {MOST_NODES:,} values; expected a smaller file"
            )
        return node


def _expanded(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """Return the number of values of a node with all aliases expanded."""
    if depth > MOST_DEPTH:
        raise SettingsError(
            f"line {node.start_mark.line + 1}: more than {MOST_DEPTH} levels of nesting, or a recursive alias"
        )
    if id(node) not in known:
        inner = [] if isinstance(node, yaml.ScalarNode) else node.value
        children = [child for entry in inner for child in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_expanded(child, known, depth + 1) for child in children)
    return known[id(node)]


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = key_node.value
        if not isinstance(key_node, yaml.ScalarNode):
            raise SettingsError(f"line {key_node.start_mark.line + 1}: a key must be a string")
        if key in seen:
            raise SettingsError(
                f"line {key_node.start_mark.line + 1}: key {key!r} is given twice; remove one"
            )
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        SettingsError: The file is missing, too large, not YAML or not a mapping, or a key is duplicated.
    """
    try:
        if path.stat().st_size > MOST_TEXT:
            raise SettingsError(f"{path}: larger than {MOST_TEXT >> 20} MB; expected a settings file")
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file{_similar_file(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: cannot be read as a settings file ({error})") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: object) -> dict[str, Any]:
    """Parse a YAML mapping.

    Args:
        text: The document.
        path: Its source, for messages.

    Raises:
        SettingsError: As for `read_yaml`.
    """
    try:
        value = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader subclass
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except RecursionError:
        raise SettingsError(
            f"{path}: more than {MOST_DEPTH} levels of nesting; expected a settings file"
        ) from None
    except (ValueError, OverflowError) as error:  # a number or date that Python cannot represent
        raise SettingsError(f"{path}: not valid YAML: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise SettingsError(f"{path}:{where} not valid YAML: {problem}") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SettingsError(f"{path}: expected `key: value` lines, got a {type(value).__name__}")
    return value


def validate_settings(model: type[M], mapping: dict[str, Any], source: object) -> M:
    """Build a settings object; the first validation error becomes a SettingsError that starts with `source`."""
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        raise SettingsError(f"{source}: {explain(model, error)}") from None


def explain(model: type[BaseModel], error: ValidationError) -> str:
    """Turn a pydantic error into one line: key, value, what was expected, and the most similar valid name."""
    errors = error.errors(include_url=False)
    first = errors[0]
    more = len(errors) - 1
    keys, known, others = _walk(model, first["loc"])
    key = ".".join(keys)
    moved = [
        str(one["loc"][-1])
        for one in errors
        if one["type"] == "extra_forbidden"
        and one["loc"][:-1] == first["loc"][:-1]
        and one["loc"][-1] in others
    ]
    if keys and keys[-1] in moved:
        text, more = _moved(keys, moved, str(first["loc"][-2])), len(errors) - len(moved)
    elif first["type"] == "extra_forbidden":
        text = f"unknown key `{key}`{nearest(keys[-1], known)}"
    elif first["type"] == "missing":
        text = f"`{key}` is missing; add it"
    elif first["type"] == "value_error":
        text = f"`{key}`: {first['ctx']['error']}" if key else str(first["ctx"]["error"])
    elif first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = first["ctx"]
        tag, expected = context.get("tag"), context.get("expected_tags", "")
        if tag is None:
            text = f"`{key}`: a `kind` is missing; add one"
        else:
            choices = [choice.strip(" '") for choice in expected.split(",")]
            text = f"`{key}.kind`: unknown kind {tag!r}{nearest(tag, choices)}; known: {', '.join(choices)}"
    else:
        text = f"`{key}` is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return text + (f" (and {more} more mistake{'s' if more > 1 else ''})" if more else "")


def _moved(keys: list[str], moved: list[str], kind: str) -> str:
    """Return a message for the keys `moved`, which are valid only for a different kind of the section."""
    shown = ", ".join(f"`{name}`" for name in moved[:3]) + (f", … ({len(moved)})" if len(moved) > 3 else "")
    many, say = (
        ("s", "they belong to another kind: remove them")
        if len(moved) > 1
        else ("", "it belongs to another kind: remove it")
    )
    return f"unknown key{many} {shown} in `{'.'.join(keys[:-1])}` of kind {kind}; {say}"


def nearest(word: str, known: list[str]) -> str:
    """Return "; did you mean `x`?" or, without a similar word, the known words."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean `{close[0]}`?"
    return f"; known: {', '.join(known)}" if known else ""


def load_experiment(path: Path | str) -> Experiment:
    """Read an experiment file.

    Raises:
        SettingsError: The file is invalid; the message names the file, the key, the value and what was expected.
    """
    return validate_settings(Experiment, read_yaml(Path(path)), path)


def shipped(folder: str) -> Path:
    """Return the folder `settings` or `weights` of the package; in a checkout, the folder is next to the package."""
    package = Path(__file__).parents[1]
    return package / folder if (package / folder).is_dir() else package.parent / folder


def settings_files(kind: str = "*") -> dict[str, Path]:
    """Return the settings files by name, such as `own_videos_rgb` or `late_temporal/rgb_I3D64f`.

    The files are those in the folder `settings` of the current folder and those that come with the package. A file of
    the current folder replaces one of the package that has the same name.

    Args:
        kind: `experiments`, `studies`, or `*` for both.
    """
    found: dict[str, Path] = {}
    for root in (shipped("settings"), Path("settings")):
        for folder in sorted(root.glob(kind)):
            if folder.name in ("experiments", "studies"):
                found |= {
                    path.relative_to(folder).with_suffix("").as_posix(): path
                    for path in folder.rglob("*.yaml")
                }
    return dict(sorted(found.items()))


def find_settings(given: str, kind: str) -> Path:
    """Return a settings file by its path or its name; see `settings_files`. A path that exists comes first.

    A path such as `settings/experiments/small.yaml` is also found if it comes with the package.

    Raises:
        SettingsError: There is neither such a file nor such a name; the message suggests the most similar name.
    """
    path = Path(given)
    if path.exists():
        return path
    inside = shipped("settings").parent / path
    known = settings_files(kind)
    found = known.get(path.with_suffix("").as_posix(), inside if path.parts[:1] == ("settings",) else None)
    if found is None or not found.is_file():
        if path.suffix or len(path.parts) > 2:
            return path  # reading it reports the missing file
        raise SettingsError(
            f"{given}: no such file, and no settings of this name{nearest(given, list(known))}"
        )
    return found


def dump(options: BaseModel) -> str:
    """Return settings as YAML, from which `validate_settings` builds an equal object."""
    return yaml.safe_dump(options.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def departures(options: BaseModel) -> dict[str, Any]:
    """Return the values that differ from their field's default, and the `kind` of every section."""
    plain = options.model_dump(mode="json")
    found: dict[str, Any] = {}
    for name, field in type(options).model_fields.items():
        value = getattr(options, name)
        if isinstance(value, BaseModel):
            found[name] = departures(value)
        elif name == "kind" or value != field.get_default(call_default_factory=True):
            found[name] = plain[name]
    return found


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings as one level, with keys such as `a.b.c`."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _similar_file(path: Path) -> str:
    names = {p.stem: p for p in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
    close = difflib.get_close_matches(path.stem, names, n=1, cutoff=0.6)
    return f"; did you mean {names[close[0]]}?" if close else ""


def _walk(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str], set[str]]:
    """Return the keys of an error's location, the keys valid at its last level, and the keys of other kinds."""
    keys: list[str] = []
    current: type[BaseModel] | None = model
    members: dict[str, type[BaseModel]] = {}
    known: list[str] = []
    others: set[str] = set()
    for step in location:
        if isinstance(step, str) and step in members:
            current = members[step]
            others = {name for member in members.values() for name in member.model_fields}
            members = {}
            continue
        if current and step in current.model_fields:
            others = set()
        keys.append(str(step))
        known = list(current.model_fields) if current else []
        field = current.model_fields.get(str(step)) if current else None
        current, members = _below(field)
    return keys, known, others


def _below(field: FieldInfo | None) -> tuple[type[BaseModel] | None, dict[str, type[BaseModel]]]:
    """Return the settings class of a field, or for a union the class of each kind."""
    if field is None:
        return None, {}
    types = [field.annotation, *get_args(field.annotation)]
    classes = [t for t in types if isinstance(t, type) and issubclass(t, BaseModel)]
    if field.discriminator:
        return None, {str(c.model_fields["kind"].default): c for c in classes}
    return (classes[0], {}) if classes else (None, {})


def union_members(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """Return the class of each kind of a discriminated field; empty for any other field."""
    return _below(field)[1] if field.discriminator else {}
