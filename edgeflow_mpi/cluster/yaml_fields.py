"""Reading YAML that people may have edited: every complaint names file, line, key and remedy."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from edgeflow_mpi.errors import ProfileError

# libyaml's loader reads the profile of a large model some ten times faster.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """`` (did you mean 'gflops'?)`` where something of nearly that name is known, else nothing."""
    lowered = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.6)
    return f" (did you mean {lowered[close[0]]!r}?)" if close else ""


@dataclass(frozen=True)
class Field:
    """One value of a YAML file, and where it stands in it.

    Every method returns the value in the form asked for, or raises
    :class:`~edgeflow_mpi.errors.ProfileError` with one sentence.
    """

    value: Any
    file: str
    key: str = ""
    node: yaml.Node | None = field(default=None, repr=False, compare=False)

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
        loader = None
        try:
            loader = _Loader(text)
            node = loader.get_single_node()
            _refuse_repeated_keys(node, file)
            return Field(None if node is None else loader.construct_document(node), file, "", node)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            mark = getattr(error, "problem_mark", None)
            where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
            problem = getattr(error, "problem", None) or type(error).__name__
            raise ProfileError(f"{file} is not valid YAML{where}: {problem}") from None
        finally:
            if loader is not None:
                loader.dispose()

    def fail(self, problem: str) -> NoReturn:
        """Complain about this value: ``file, line 3: key problem``."""
        line = f", line {self.node.start_mark.line + 1}" if self.node and self.key else ""
        raise ProfileError(f"{self.file}{line}: {self.key or 'the content'} {problem}")

    def mapping(self, *keys: str, optional: Sequence[str] = ()) -> dict[str, Field]:
        """A mapping with exactly these keys, and any of those that are ``optional``."""
        known = (*keys, *optional)
        fields = self.named("a mapping with the keys " + ", ".join(known))
        for name in fields:
            if name not in known:
                fields[name]._complain_of(
                    self, f"has the unknown key {name!r}{did_you_mean(name, known)}, it may have "
                    f"{', '.join(known)}"
                )  # fmt: skip
        for name in keys:
            if name not in fields:
                more = f", and may have {', '.join(optional)}" if optional else ""
                self.fail(f"lacks the key {name!r}, it must have {', '.join(keys)}{more}")
        return fields

    def _complain_of(self, holder: Field, problem: str) -> NoReturn:
        """Complain about ``holder`` at the line where this value of it stands."""
        Field(holder.value, holder.file, holder.key or "the content", self.node).fail(problem)

    def named(self, allowed: str) -> dict[str, Field]:
        """A mapping from any names."""
        if not isinstance(self.value, dict):
            self._refuse(allowed)
        prefix = f"{self.key}." if self.key else ""
        nodes: dict[str, yaml.Node] = {}
        if isinstance(self.node, yaml.MappingNode):
            nodes = {key.value: value for key, value in self.node.value if _is_scalar(key)}
        for name in self.value:
            if not isinstance(name, str):
                self.fail(f"has the key {name!r}, its keys must be names (quote it)")
        return {
            name: Field(
                v, self.file, prefix + (name if name.isprintable() else repr(name)), nodes.get(name)
            )
            for name, v in self.value.items()
        }

    def items(self, allowed: str, *, length: int | None = None) -> list[Field]:
        """A list, of exactly ``length`` items where that is given."""
        if not isinstance(self.value, list) or length not in (None, len(self.value)):
            self._refuse(allowed)
        nodes = self.node.value if isinstance(self.node, yaml.SequenceNode) else ()
        return [
            Field(v, self.file, f"{self.key}[{i}]", nodes[i] if i < len(nodes) else None)
            for i, v in enumerate(self.value)
        ]

    def choice(self, known: Sequence[str]) -> str:
        """One of the texts ``known``."""
        if self.value not in known:
            hint = did_you_mean(self.value, known) if isinstance(self.value, str) else ""
            self.fail(f"is {self._shown()}{hint}, it must be {_one_of(known)}")
        return str(self.value)

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
        written = self.value
        # YAML 1.1 takes a number without a decimal point, such as 1e-3, for a text.
        if isinstance(written, str) and _EXPONENT.fullmatch(written):
            written = float(written)
        try:
            value = float(written) if type(written) in (int, float) else math.nan
        except OverflowError:  # an integer of more than 308 digits
            value = math.inf
        if not math.isfinite(value) or value < 0 or (positive and value == 0):
            self._refuse(f"a finite number {'above 0' if positive else 'of at least 0'}")
        return value

    def _refuse(self, allowed: str) -> NoReturn:
        self.fail(f"is {self._shown()}, it must be {allowed}")

    def _shown(self) -> str:
        shown = repr(self.value)
        return shown if len(shown) <= 60 else shown[:57] + "..."


def _one_of(known: Sequence[str]) -> str:
    few = known if len(known) <= 12 else (*known[:12], "...")
    return ("one of " if len(known) > 1 else "") + ", ".join(few)


def _is_scalar(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode)


def _refuse_repeated_keys(node: yaml.Node | None, file: str) -> None:
    """YAML's reader would keep the last of two values without a word."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            pending += node.value
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                pending.append(value)
                if _is_scalar(key) and key.value != "<<":
                    if key.value in names:
                        raise ProfileError(
                            f"{file}, line {key.start_mark.line + 1}: the key {key.value!r} is "
                            "given twice, once is allowed"
                        )
                    names.add(key.value)
