"""Reports: quotes and costs of serving, as a terminal or a page shows them."""

from orchestrate.reports import Comparison as Comparison
from orchestrate.reports import EvaluationReport as EvaluationReport
from orchestrate.reports import ownership_markdown as ownership_markdown
from orchestrate.reports import ownership_table as ownership_table
from orchestrate.reports import quote_markdown as quote_markdown
from orchestrate.reports import quote_table as quote_table
