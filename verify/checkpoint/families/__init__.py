"""The families of decoders, one file each: what a config.json says, and where tensors lie."""

from __future__ import annotations

import pkgutil
from importlib import import_module

from gpt_verify.checkpoint.family import Family

#: ``model_type`` → the family. A new family is a new file.
FAMILIES: dict[str, Family] = {
    family.name: family
    for found in pkgutil.iter_modules(__path__)
    for family in [import_module(f"{__name__}.{found.name}").FAMILY]
}
