"""Read a JobSpec from a YAML file with line numbers and overrides. Also provides the template of
`orchestrate init` and the JSON schema."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from orchestrate.core.expansion import document, require_bounded
from orchestrate.errors import SpecError, UsageError
from orchestrate.spec import JobSpec, TrainFile, overridden
from orchestrate.spec.methods import OPTIMIZERS, merged, spec_errors
from orchestrate.text import meant

DEFAULT_NAME = "finetune.yaml"
SCHEMA_NAME = "finetune.schema.json"
_DATA_FIELDS = ("train", "validation", "test")
Lines = dict[tuple[str, ...], int]


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> JobSpec:
    """Read a spec file and apply `overrides` (by dotted name). Relative data paths are resolved against the
    file's folder. Raises `SpecError` with one line per mistake: line in the file, field, reason, allowed
    values."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError(
            f"there is no spec at {path}", fix="orchestrate init   (or pass --model and --train)"
        ) from error
    except (OSError, ValueError) as error:  # also text in another encoding, and names with a null byte
        raise SpecError(f"{path} cannot be read: {error}", fix=_spec_for(path)) from error
    values, lines = parse(text, path)
    for name in _DATA_FIELDS:
        if name in values:
            values[name] = _files_from(values[name], path.parent)
    values = _with_template_from(values, path.parent)
    if isinstance(values.get("overrides"), dict):
        each = _as_table(values["overrides"]).items()
        values["overrides"] = {n: _with_template_from(own, path.parent) for n, own in each}
    if isinstance(model := values.get("model"), str):
        values["model"] = _local_model(model, path.parent)
    elif isinstance(model, dict):
        values["model"] = {k: _local_model(v, path.parent) for k, v in _as_table(model).items()}
    for name, value in (overrides or {}).items():
        put(values, name, value)
    place = f"{path} with the given settings" if overrides else str(path)
    return build(values, lines=lines, place=place)


def build(values: Mapping[str, Any], *, lines: Lines | None = None, place: str = "the spec") -> JobSpec:
    """Build a `JobSpec` from parsed YAML or JSON. Raises `SpecError` if a value is invalid."""
    try:
        spec = JobSpec.model_validate(dict(values))
    except ValidationError as error:
        raise SpecError(f"{place} is not valid:", errors=spec_errors(error, JobSpec, lines)) from error
    if errors := [error for name in spec.overrides for error in _override_errors(spec, name, lines)]:
        raise SpecError(f"{place} is not valid:", errors=errors)
    return spec


def _override_errors(spec: JobSpec, name: str, lines: Lines | None) -> list[str]:
    """Return the errors in the values that override the spec for one backend."""
    model = spec.model if isinstance(spec.model, str) else next(iter(spec.model.values()))
    try:
        JobSpec.model_validate(overridden(spec, name, model))
    except ValidationError as error:
        return spec_errors(error, JobSpec, lines, under=("overrides", name))
    return []


def parse_settings(pairs: Iterable[str], example: str = "--set adapter.r=16") -> dict[str, Any]:
    """Parse settings such as `["adapter.r=16", "schedule=cosine"]`. Values are parsed as YAML. Raises
    `UsageError` for a setting that is not `name=value`, and for invalid YAML."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UsageError(f"{example.split()[0]} expects name=value, as in {example}, but got {pair!r}")
        try:
            values[name.strip()] = document(text)
        except (yaml.YAMLError, ValueError) as error:
            raise UsageError(f"{example.split()[0]} {name}: {text!r} is not a valid YAML value") from error
    return values


def put(values: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a field of a spec by its dotted name, as `merged` does. The `overrides` of each backend that have
    the field would win otherwise, so it is also set there."""
    if dotted == "model" and isinstance(value, Mapping):
        for backend, model in _as_table(value).items():
            put(values, f"model.{backend}", model)
        return
    path = tuple(dotted.split("."))
    _put(values, path, value)
    for name, own in _as_table(values.get("overrides")).items():
        if path[0] not in _as_table(own):
            continue
        if path[0] != "model":
            _put(values, ("overrides", name, *path), value)
        elif path[1:] in ((), (name,)):  # a backend's overrides have only its own model
            _put(values, ("overrides", name, "model"), value)


def _put(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for part in parents:
        inner = values.get(part)
        if isinstance(inner, str):
            inner = {"default" if part == "model" else "type": inner}
        values[part] = _as_table(inner)
        values = values[part]
    changed = merged(values, {last: value}, tuple(parents))
    values.clear()
    values.update(changed)


def require_backends(spec: JobSpec, known: Sequence[str]) -> None:
    """Raise `SpecError` if the spec names a backend that is not among `known`."""
    named: dict[str, Iterable[str]] = {
        "model": () if isinstance(spec.model, str) else spec.model.keys() - {"default"},
        "overrides": spec.overrides,
        "provider_options": spec.provider_options,
    }
    wrong = [
        f"  {field}.{name}{meant(name, known)}"
        for field, names in named.items()
        for name in names
        if name not in known
    ]
    if wrong:
        raise SpecError(
            "the spec names unknown backends:",
            errors=[*wrong, f"  known: {', '.join(known)}"],
            fix="orchestrate providers",
        )


def anchored(spec: JobSpec) -> JobSpec:
    """Make paths in the spec absolute, so that the run can be resumed and evaluated from other folders."""
    named = {name: getattr(spec, name) for name in _DATA_FIELDS}
    full = {name: _files_from(given, Path.cwd()) for name, given in named.items() if given is not None}
    return with_template(spec.model_copy(update=full))


def with_template(spec: JobSpec) -> JobSpec:
    """Replace the path of a chat template file with the file's text, because the file may change later.
    Raises `SpecError` if it cannot be read."""
    if spec.chat_template is None or _is_template(spec.chat_template):
        return spec
    return spec.model_copy(update={"chat_template": template_text(spec.chat_template)})


def template_text(given: str) -> str:
    """Return the text of a chat template that is given inline or as a file. Raises `SpecError` if the file
    cannot be read."""
    if _is_template(given):
        return given
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"chat_template: could not read {path}: {error}", fix="use a file with a Jinja template"
        ) from error
    if not _is_template(text):
        raise SpecError(f"chat_template: {path} contains no Jinja template", fix="specify another file")
    return text


def _with_template_from(values: Any, folder: Path) -> Any:
    """Resolve the path of a chat template against `folder`."""
    if not isinstance(values, dict):
        return values
    table = _as_table(cast("Any", values))
    template = table.get("chat_template")
    if isinstance(template, str) and not _is_template(template):
        table["chat_template"] = _from_folder(template, folder)
    return table


def _is_template(text: str) -> bool:
    """Return whether the value is a template rather than the name of a file."""
    return "{{" in text or "{%" in text


def overrides_block(provider: str, fields: Mapping[str, Any]) -> str:
    """Return the lines of an `overrides:` block with these fields for one backend."""
    return "\n".join(["overrides:", f"  {provider}:", *(f"    {line}" for line in _lines(fields))])


def with_overrides(path: Path, provider: str, fields: Mapping[str, Any]) -> str:
    """Add `fields` to the file's `overrides:` for one backend, leave everything else unchanged, and return
    the new text. If the YAML cannot be edited, raises `SpecError` with the lines to add."""
    before = path.read_bytes().decode("utf-8")
    values, _ = parse(before, path)
    every = _as_table(values.get("overrides"))
    wanted = {**values, "overrides": {**every, provider: {**_as_table(every.get(provider)), **fields}}}
    after = _inserted(before, provider, fields)
    try:
        found = yaml.safe_load(after)
    except yaml.YAMLError:
        found = None
    if found != wanted:
        raise SpecError(
            f"could not edit {path} automatically because of how its YAML is written. "
            "Add these lines yourself:",
            errors=[f"  {line}" for line in overrides_block(provider, fields).splitlines()],
        )
    return after


def _inserted(text: str, provider: str, fields: Mapping[str, Any]) -> str:
    """Insert the fields below `overrides:`. If the file has an unexpected form, the result does not parse to
    the intended values."""
    lines = text.splitlines(keepends=True)
    end = "\r\n" if lines and lines[0].endswith("\r\n") else "\n"
    if lines and lines[-1].splitlines()[0] == lines[-1]:
        lines[-1] += end
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    block = [line.removeprefix("  ") for line in overrides_block(provider, fields).splitlines()[1:]]
    overrides = _entry(root, "overrides")
    if overrides is None:
        at, new = len(lines), ["overrides:", *(f"  {line}" for line in block)]
    else:
        indent, own = _indent(overrides[1]), _entry(overrides[1], provider)
        if own is None:
            at, new = overrides[0] + 1, [f"{indent}{line}" for line in block]
        else:
            indent = _indent(own[1])
            at, new = own[0] + 1, [f"{indent}{line}" for line in _lines(fields)]
    return "".join([*lines[:at], *(f"{line}{end}" for line in new), *lines[at:]])


def _entry(node: Any, name: str) -> tuple[int, Any] | None:
    """Return the line of a mapping's key, and its value."""
    pairs: list[tuple[Any, Any]] = node.value if isinstance(node, yaml.MappingNode) else []
    return next(((k.start_mark.line, v) for k, v in pairs if k.value == name), None)


def _indent(node: Any) -> str:
    first = node.value[0][0] if isinstance(node, yaml.MappingNode) and node.value else None
    return " " * (first.start_mark.column if first else 2)


def yaml_text(value: Any, **how: Any) -> str:
    """Format `value` as YAML without wrapping lines."""
    untyped: Any = yaml  # some releases of its type stubs leave arguments without a type
    return str(untyped.safe_dump(value, width=10_000, **how))


def _lines(fields: Mapping[str, Any]) -> list[str]:
    flow = {n: yaml_text(v, default_flow_style=True) for n, v in fields.items()}
    return [f"{name}: {value.splitlines()[0]}" for name, value in flow.items()]


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of spec files, for editors."""
    schema = JobSpec.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Orchestrate fine-tuning spec"
    # A spec may also give just the name (`method: sft`). A validator handles this, so the schema lacks it.
    for name in ("method", "adapter"):
        part = schema["properties"][name]
        words = list(part["discriminator"]["mapping"])
        schema["properties"][name] = {
            "description": part.pop("description"),
            "anyOf": [part, {"enum": words}],
            "default": part["default"]["type"],
        }
    schema["properties"]["optimizer"]["anyOf"].append({"enum": list(OPTIMIZERS)})
    file = schema["$defs"]["TrainFile"]
    schema["$defs"]["TrainFile"] = {"anyOf": [file, {"type": "string", "minLength": 1}]}
    return schema


def parse(text: str, path: Path) -> tuple[dict[str, Any], Lines]:
    """Parse a YAML file. Returns its fields, and the line of each. Raises `SpecError` if the file is not a
    mapping or sets a field twice."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        require_bounded(node)
        values = yaml.safe_load(text)
        lines: Lines = {}
        if isinstance(node, yaml.MappingNode):
            _collect_lines(node, (), lines, path)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"  line {line}: the character {chr(error.character)!r} is not allowed"
        raise SpecError(f"{path} is not valid YAML:", errors=[problem]) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        reasons = [f"  {where}{problem}"]
        raise SpecError(f"{path} is not valid YAML:", errors=reasons, fix=_spec_for(path)) from error
    except RecursionError as error:
        raise SpecError(f"{path} is nested too deeply, or an anchor refers to itself") from error
    if not isinstance(values, dict) or not isinstance(node, yaml.MappingNode):
        fix = _spec_for(path) or "orchestrate init"
        raise SpecError(f"{path} must be a mapping of fields, as in  model: qwen3-8b", fix=fix)
    return _as_table(values), lines


def _spec_for(path: Path) -> str | None:
    """Return how to get a spec if this file is more likely to contain rows."""
    is_spec = path.suffix.lower() in ("", ".yaml", ".yml", ".json")
    return None if is_spec else f"orchestrate init {path}   (writes a spec for a file of rows)"


def _collect_lines(node: yaml.MappingNode, prefix: tuple[str, ...], lines: Lines, path: Path) -> None:
    for key, value in node.value:
        name, line = (*prefix, str(key.value)), key.start_mark.line + 1
        if name in lines:
            # YAML would silently keep only the last value, and drop a setting that the user wrote.
            raise SpecError(
                f"{path} is not valid:",
                errors=[f"  line {line}: {'.'.join(name)}: duplicate field, first set on line {lines[name]}"],
            )
        lines[name] = line
        held: list[Any] = value.value if isinstance(value, yaml.SequenceNode) else []
        for place, item in enumerate(held):
            if isinstance(item, yaml.MappingNode):
                _collect_lines(item, (*name, str(place)), lines, path)
        if isinstance(value, yaml.MappingNode):
            _collect_lines(value, name, lines, path)


def _as_table(value: Any) -> dict[str, Any]:
    return {str(k): v for k, v in cast("dict[Any, Any]", value).items()} if isinstance(value, dict) else {}


def _from_folder(value: str, folder: Path) -> str:
    return value if "://" in value or Path(value).is_absolute() else os.path.normpath(folder / value)


def _files_from(value: Any, folder: Path) -> Any:
    """Resolve the relative paths of a data field against `folder`. Invalid values stay for the spec to
    reject."""
    if isinstance(value, str):
        return _from_folder(value, folder)
    if isinstance(value, TrainFile):
        return value.model_copy(update={"path": _from_folder(value.path, folder)})
    if isinstance(value, dict):
        table = _as_table(value)
        path = table.get("path")
        return {**table, "path": _from_folder(path, folder)} if isinstance(path, str) else table
    if isinstance(value, list | tuple):
        return tuple(_files_from(one, folder) for one in cast("Sequence[Any]", value))
    return value


def _local_model(value: Any, folder: Path) -> Any:
    if isinstance(value, str) and value and os.path.isdir(folder / value):  # noqa: PTH112  as in the catalog
        return os.path.normpath(folder / value)
    return value


def template(name: str = DEFAULT_NAME) -> str:
    """Return a commented spec, or commented project settings, as a starting point."""
    return files("orchestrate").joinpath("templates", name).read_text(encoding="utf-8")
