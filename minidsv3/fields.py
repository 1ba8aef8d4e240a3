"""Dataclasses that are made from files and command lines: every field is checked by name."""

import dataclasses
import difflib

from .command import UserError


def check_types(config):
    """Raise UserError if a field has another type than declared: JSON and --set check nothing."""
    for field in dataclasses.fields(config):
        value, allowed = getattr(config, field.name), field.type
        if allowed in (float, float | None) and type(value) is int:
            if abs(value) > 1e300:               # which float() refuses
                raise UserError(f"{field.name} has {len(str(abs(value)))} digits; give a number "
                                "below 1e300.")
            object.__setattr__(config, field.name, float(value))
        elif type(value) is bool and allowed is not bool or not isinstance(value, allowed):
            expected = getattr(allowed, "__name__", str(allowed))
            raise UserError(
                f"{field.name}={value!r} is a {type(value).__name__}; give {expected}.")


def replace_fields(config, changes):
    """A copy of a frozen dataclass with fields changed; UserError on an unknown name."""
    fields = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return build(type(config), fields | changes)


def build(cls, values, prefix=""):
    """Make a dataclass from a dict of its fields; UserError for unknown and for missing names.

    prefix stands before each name in these errors, as "rope_scaling." does.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known are {', '.join(known)}."
            raise UserError(f"{cls.__name__} has no field {prefix}{name}; {hint}")
    missing = [f.name for f in dataclasses.fields(cls)
               if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise UserError(f"{cls.__name__} needs {prefix}{missing[0]}; add it.")
    return cls(**values)
