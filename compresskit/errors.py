"""The tree of errors: each has a stable code, says what happened, where, why and how to mend it.

``compresskit explain CODE`` prints the long form, kept in ``error_codes.yaml``. The class decides the exit status
of the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CompressKitError(Exception):
    """Any failure that compresskit foresees.

    Args:
        code: stable identifier such as ``CK-R012``, listed in ``error_codes.yaml``.
        what: one sentence: what happened.
        where: file, line, module path or tensor name.
        why: the cause, where it isn't plain from ``what``.
        fix: what the user can do.
        excerpt: the lines of the user's file that are meant, with a caret below; for people, not in ``where``.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "", excerpt: str = ""
    ) -> None:
        super().__init__(what)
        self.code, self.what, self.where, self.why, self.fix, self.excerpt = code, what, where, why, fix, excerpt

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.to_dict(), self.excerpt))

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.what}"]
        for label, text in ((" --> ", self.where), ("", self.excerpt), (" why: ", self.why), (" fix: ", self.fix)):
            if text:
                lines.append(label + text)
        return "\n".join(lines)

    def to_dict(self) -> dict[str, str]:
        """The same content for ``--json``."""
        return {"code": self.code, "what": self.what, "where": self.where, "why": self.why, "fix": self.fix}


def _rebuild(kind: type[CompressKitError], parts: dict[str, str], excerpt: str) -> CompressKitError:
    return kind(parts["code"], parts["what"], where=parts["where"], why=parts["why"], fix=parts["fix"], excerpt=excerpt)


class GateError(CompressKitError):
    """A quality, size or latency gate was missed; the best effort is kept aside."""

    exit_code = 1


class UsageError(CompressKitError):
    """The command line asks for something impossible."""

    exit_code = 2


class RecipeError(UsageError):
    """The recipe is wrong: an unknown key, a bad value, a pattern that matches nothing, an impossible order."""


class ModelError(CompressKitError):
    """The source model is damaged, incomplete or not supported."""

    exit_code = 3


class DataError(CompressKitError):
    """Calibration, training or evaluation data can't be used."""

    exit_code = 3


class ExportError(CompressKitError):
    """The ONNX file could not be made, or did not agree with the model."""

    exit_code = 3


class ResourceError(CompressKitError):
    """Disk, memory, permission or lock."""

    exit_code = 4


class InterruptedRun(CompressKitError):
    """Stopped by the user or a signal; can be resumed."""

    exit_code = 5


class SecurityError(CompressKitError):
    """Refused, since it could run code or read outside its folder."""

    exit_code = 6


class InternalError(CompressKitError):
    """A broken invariant of compresskit itself."""

    exit_code = 70


class RecipeErrors(RecipeError):
    """Several mistakes of one recipe, reported together."""

    def __init__(self, errors: list[RecipeError]) -> None:
        first = errors[0]
        super().__init__(first.code, first.what, where=first.where, why=first.why, fix=first.fix, excerpt=first.excerpt)
        self.errors = errors

    def __reduce__(self) -> tuple[Any, ...]:
        return (RecipeErrors, (self.errors,))

    def __str__(self) -> str:
        return "\n\n".join(str(error) for error in self.errors)
