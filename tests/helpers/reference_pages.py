"""The tables of the reference, and the JSON Schema of results that they declare."""

import re

import pages

COMMANDS = ("score", "compare", "compare --text", "info")
NUMBER = {"type": ["number", "null"]}
TYPES = {
    "text": {"type": ["string", "null"]},
    "texts": {"type": ["array", "null"], "items": {"type": "string"}},
    "integer": {"type": ["integer", "null"]},
    "integers": {"type": ["array", "null"], "items": {"type": "integer"}},
    "bool": {"type": ["boolean", "null"]},
    "two": {"type": ["array", "null"], "items": NUMBER, "minItems": 2, "maxItems": 2},
    "list": {"type": ["array", "null"]},
    "object": {"type": ["object", "null"]},
    "record": {"type": ["object", "null"]},
    "`all`": {"const": "all"},
}  # others are units of numbers


def tables_of(name):
    """The tables of a page: the heading above each, the cells of its head, and its rows."""
    lines = (pages.DOCS / "reference" / f"{name}.md").read_text("utf-8").splitlines()
    heading, tables = "", []
    for line, before in zip(lines, ["", *lines], strict=False):
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not before.startswith("|"):
                tables.append((heading, cells, []))
            elif not set(line) <= set("|-: "):
                tables[-1][2].append(cells)
    return tables


def codes(text):
    """The texts between backticks."""
    return re.findall(r"`([^`]+)`", text)


def json_schema():
    """The JSON Schema of what the commands print with --json, and of `to_dict()`."""
    tables = tables_of("json")
    shared = {}  # the type of each key where it is described first
    for _, head, rows in tables:
        if head[0].startswith("`."):
            for keys, types, _ in rows:
                shared |= {key: one for key, one in _types_of(keys, types).items() if key not in shared and one}
    commands = {command: _schema_of(command, tables, shared) for command in COMMANDS}
    models = {"type": "object", "minProperties": 2, "additionalProperties": {"$ref": "#/$defs/score"}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of tokenloss",
        "anyOf": [{"$ref": f"#/$defs/{command.replace(' --', '-')}"} for command in (*COMMANDS, "score of models")],
        "$defs": {command.replace(" --", "-"): one for command, one in commands.items()} | {"score of models": models},
    }


def _schema_of(command, tables, shared):
    """The schema of what a command prints."""
    objects = {".": {"type": "object", "properties": {}, "required": []}}
    for heading, head, rows in tables:
        for path in codes(head[0]) if heading == f"`tokenloss {command}`" else ():
            one = objects.setdefault(path, {"type": "object", "properties": {}, "required": []})
            for keys, types, meaning in rows:
                for key, schema in _types_of(keys, types).items():
                    # a key of several kinds of input has the types of all
                    known = one["properties"].get(key)
                    schema = schema or shared[key]
                    one["properties"][key] = schema if known in (None, schema) else {"anyOf": [known, schema]}
                    if not re.match(r"\*[^*]+:\*", meaning) and not re.search(r"[Ww]ith (`--|gates)", meaning):
                        one["required"].append(key)
    for path, one in sorted(objects.items(), key=lambda item: -len(item[0])):
        parent, key = re.fullmatch(r"(.*)\.([^.\[\]]*)(?:\[\])?", path).groups()
        if key:
            schema = dict(objects[parent or "."]["properties"][key])
            own = {"items": one} if path.endswith("[]") else {name: one[name] for name in ("properties", "required")}
            objects[parent or "."]["properties"][key] = schema | own
    return objects["."]


def _types_of(keys, types):
    """The schema of each key in a row of a table; None for one whose type is described elsewhere."""
    names = codes(keys)
    if types.startswith("as "):
        return dict.fromkeys(names)
    parts = [part.rpartition(": ")[2].strip() for part in types.split(";")]
    parts += parts[-1:] * (len(names) - len(parts))
    schemas = {}
    for name, part in zip(names, parts, strict=False):
        own, two = (part.partition(", ")[0], "two" in part)
        if name.endswith(("_quantiles", "_quantile_intervals")):
            schemas[name] = TYPES["object"]
        elif two and name.endswith("interval"):
            schemas[name] = TYPES["two"]
        else:
            choices = [TYPES.get(one, NUMBER) for one in own.removeprefix("null or ").split(" or ")]
            schemas[name] = choices[0] if len(choices) == 1 else {"anyOf": choices}
    return schemas
