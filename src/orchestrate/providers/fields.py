"""From where the fields of a host's create request are known.

Each backend has a table of them; `tests/contract` compares the tables with the SDKs' own types and with the
descriptions that the hosts publish.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from orchestrate.types import Authority


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Names in the request, dotted and separated by blanks; below one of them anything may stand."""

    sdk: str
    """Of the types of the host's SDK."""
    specification: str = ""
    """Of the API description that the host publishes, and in no type of its SDK."""
    documentation: str = ""
    """Of pages of the host only."""

    @cached_property
    def names(self) -> dict[str, Authority]:
        by = {
            Authority.DOCUMENTATION: self.documentation,
            Authority.SPECIFICATION: self.specification,
            Authority.SDK: self.sdk,
        }
        return {name: authority for authority, names in by.items() for name in names.split()}

    def authority(self, field: str) -> Authority:
        """Of a field, of one below it, or of the table that it stands in."""
        for name, authority in self.names.items():
            if field == name or field.startswith(f"{name}.") or name.startswith(f"{field}."):
                return authority
        return Authority.NONE
