"""Small charts as inline SVG, each drawn twice: for a page and for a phone, between which the style sheet
chooses by the width, so that no label shrinks. Colours come from there too, by class `s0`, `s1` ...; each
series has a dash and a mark of its own, so that nothing is told by colour alone."""

from orchestrate.reports.charts.curves import Series, lines
from orchestrate.reports.charts.drawing import ticks
from orchestrate.reports.charts.rows import Bar, Interval, bars, intervals
from orchestrate.reports.charts.scatter import Place, places

__all__ = ["Bar", "Interval", "Place", "Series", "bars", "intervals", "lines", "places", "ticks"]
