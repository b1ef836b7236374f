"""Quotes and whole costs as a terminal or a page shows them; nothing of evaluations is loaded for them."""

from orchestrate.reports.quotes import ownership_markdown as ownership_markdown
from orchestrate.reports.quotes import ownership_table as ownership_table
from orchestrate.reports.quotes import ownership_verdict as ownership_verdict
from orchestrate.reports.quotes import quote_markdown as quote_markdown
from orchestrate.reports.quotes import quote_table as quote_table
