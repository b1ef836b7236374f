"""How an answer is scored."""

from orchestrate.evaluation.metrics.text import BINARY as BINARY
from orchestrate.evaluation.metrics.text import METRICS as METRICS
from orchestrate.evaluation.metrics.text import choose_metric as choose_metric
from orchestrate.evaluation.metrics.text import contains as contains
from orchestrate.evaluation.metrics.text import exact_match as exact_match
from orchestrate.evaluation.metrics.text import token_f1 as token_f1
