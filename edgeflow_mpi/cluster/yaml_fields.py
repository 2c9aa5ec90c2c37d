"""Reading YAML that people may have edited: every complaint names file, key and remedy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from edgeflow_mpi.errors import ProfileError

# libyaml's loader reads the profile of a large model some ten times faster.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Field:
    """One value of a YAML file, and where it stands in it.

    Every method returns the value in the form asked for, or raises
    :class:`~edgeflow_mpi.errors.ProfileError` with one sentence.
    """

    value: Any
    file: str
    key: str = ""

    @staticmethod
    def of_file(path: Path, what: str) -> Field:
        """The whole content of ``path``; ``what`` names the kind of file in complaints."""
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise ProfileError(f"there is no {what} {path}") from None
        except OSError as error:
            raise ProfileError(f"the {what} {path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ProfileError(f"the {what} {path} is not a text file") from None
        return Field.of_text(text, f"the {what} {path}")

    @staticmethod
    def of_text(text: str, file: str) -> Field:
        """The content of a YAML ``text`` that complaints call ``file``."""
        try:
            return Field(yaml.load(text, Loader=_Loader), file)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
            problem = getattr(error, "problem", None) or type(error).__name__
            raise ProfileError(f"{file} is not valid YAML{where}: {problem}") from None

    def fail(self, problem: str) -> NoReturn:
        """Complain about this value: ``file: key problem``."""
        raise ProfileError(f"{self.file}: {self.key or 'the content'} {problem}")

    def mapping(self, *keys: str) -> dict[str, Field]:
        """A mapping with exactly these keys."""
        fields = self.named("a mapping with the keys " + ", ".join(keys))
        for name in fields:
            if name not in keys:
                self.fail(f"has the unknown key {name!r}, it may have {', '.join(keys)}")
        for name in keys:
            if name not in fields:
                self.fail(f"lacks the key {name!r}, it must have {', '.join(keys)}")
        return fields

    def named(self, allowed: str) -> dict[str, Field]:
        """A mapping from any names."""
        if not isinstance(self.value, dict):
            self._refuse(allowed)
        prefix = f"{self.key}." if self.key else ""
        for name in self.value:
            if not isinstance(name, str):
                self.fail(f"has the key {name!r}, its keys must be names (quote it)")
        return {
            name: Field(v, self.file, prefix + (name if name.isprintable() else repr(name)))
            for name, v in self.value.items()
        }

    def items(self, allowed: str, *, length: int | None = None) -> list[Field]:
        """A list, of exactly ``length`` items where that is given."""
        if not isinstance(self.value, list) or length not in (None, len(self.value)):
            self._refuse(allowed)
        return [Field(v, self.file, f"{self.key}[{i}]") for i, v in enumerate(self.value)]

    def text(self) -> str:
        """A string that is not empty."""
        if not isinstance(self.value, str) or not self.value:
            self._refuse("a text in quotes")
        return str(self.value)

    def integer(self, least: int) -> int:
        """A whole number from ``least`` up."""
        if type(self.value) is not int or self.value < least:
            self._refuse(f"a whole number of at least {least}")
        return int(self.value)

    def number(self, *, positive: bool = False) -> float:
        """A finite number: above 0 where ``positive``, else from 0 up."""
        try:
            value = float(self.value) if type(self.value) in (int, float) else math.nan
        except OverflowError:  # an integer of more than 308 digits
            value = math.inf
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            self._refuse(f"a finite number {'above 0' if positive else 'of at least 0'}")
        return value

    def _refuse(self, allowed: str) -> NoReturn:
        shown = repr(self.value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        self.fail(f"is {shown}, it must be {allowed}")
