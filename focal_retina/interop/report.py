"""What a conversion of weights did and could not do."""

from dataclasses import dataclass, field


@dataclass
class Report:
    """What a conversion did, and what it could not do.

    Attributes:
        unused: the source's tensors that the target has no place for.
        missing: the target's tensors that the source does not have.
        differences: how the target computes otherwise with the same weights.
        changes: what was changed on the way so that nothing else changes.
    """

    unused: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    changes: list[str] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        return not (self.unused or self.missing or self.differences)

    def lines(self) -> list[str]:
        kinds = {
            "changed": self.changes,
            "differs": self.differences,
            "unused": self.unused,
            "missing": self.missing,
        }
        return [f"{kind}: {entry}" for kind, entries in kinds.items() for entry in entries]
