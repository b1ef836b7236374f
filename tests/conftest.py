"""What the whole suite shares: the table of counts at the end of a run."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Adds up what the fault tests counted: jobs on the hosts against runs in the store."""
    counted: dict[str, list[int]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "jobs" and getattr(report, "when", "") == "call":
                    row = counted.setdefault(value["where"], [0, 0, 0])
                    row[:] = [a + value[key] for a, key in zip(row, ("runs", "lost", "doubled"), strict=True)]
    if counted:
        terminalreporter.section("jobs under faults")
        terminalreporter.write_line(f"{'backend':<12}{'runs':>8}{'lost':>8}{'doubled':>9}")
        for where, (runs, lost, doubled) in sorted(counted.items()):
            terminalreporter.write_line(f"{where:<12}{runs:>8}{lost:>8}{doubled:>9}")
