"""Reports, or parts of them, as a terminal or a page shows them."""

from orchestrate.reports import Comparison as Comparison
from orchestrate.reports import EvaluationReport as EvaluationReport
from orchestrate.reports.html import evaluation as evaluation_html
from orchestrate.reports.html import flipped as flipped_html
from orchestrate.reports.html import verdicts as verdicts_html

__all__ = ["evaluation_html", "flipped_html", "verdicts_html"]
