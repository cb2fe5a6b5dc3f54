"""What a data check found, for the log, the cache and the eye."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from .kinds import KINDS, TOLERATED_SHARE

MAX_CASES = 10  # cases of a finding that are kept; all are counted


class Case(NamedTuple):
    """One faulty entry, such as ("images/a.jpg", "annotation 17", "box [0, 0, 3, nan]")."""

    file: str
    entry: str
    why: str

    def __str__(self) -> str:
        return ", ".join(part for part in self if part)


@dataclass(frozen=True)
class Finding:
    """All faults of one kind in a data set."""

    kind: str
    """A key of KINDS."""
    count: int
    cases: tuple[Case, ...]
    """The first of them."""

    def degree(self, num_objects: int, *, training: bool = True) -> str:
        """``error``, ``warning`` or ``note``, in a set of ``num_objects``."""
        kind = KINDS[self.kind]
        if kind.degree == "tolerated":
            return "error" if self.count > TOLERATED_SHARE * num_objects else "warning"
        return "warning" if kind.only_training and not training else kind.degree

    def __str__(self) -> str:
        return f"{KINDS[self.kind].title}: {self.count:,}"


@dataclass(frozen=True)
class DatasetReport:
    """The state of one data set.

    Objects are annotations that are no crowds.
    """

    name: str
    source: str
    """The annotation file, or the data set's name where it has none."""
    num_images: int
    num_empty: int
    num_crowds: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Objects of each class."""
    num_decoded: int
    findings: tuple[Finding, ...]
    unusable_images: tuple[str, ...] = field(repr=False)
    """Paths of the images that ``skip`` leaves out."""

    @property
    def num_objects(self) -> int:
        return sum(self.class_counts)

    @property
    def empty_share(self) -> float:
        """Share of the images without objects."""
        return self.num_empty / max(1, self.num_images)

    def of_degree(self, degree: str, *, training: bool = True) -> list[Finding]:
        """Findings that are errors, warnings or notes."""
        total = self.num_objects
        return [f for f in self.findings if f.degree(total, training=training) == degree]

    def describe(self, findings: Sequence[Finding]) -> str:
        """One line a finding, and one a case."""
        lines = []
        for finding in findings:
            lines.append(f"{self.source}: {finding}; {KINDS[finding.kind].meaning}")
            lines += [f"    {case}" for case in finding.cases]
            if finding.count > len(finding.cases):
                lines.append(f"    and {finding.count - len(finding.cases):,} more")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "DatasetReport":
        """The inverse of :meth:`to_json`.

        Raises:
            KeyError, TypeError: it is not what that wrote.
        """
        findings = tuple(
            Finding(x["kind"], x["count"], tuple(Case(*case) for case in x["cases"]))
            for x in content["findings"]
        )
        columns = ("class_names", "class_counts", "unusable_images")
        tuples = {name: tuple(content[name]) for name in columns}
        return cls(**{**content, **tuples, "findings": findings})
