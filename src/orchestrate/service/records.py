"""The records of other rooms that answers to commands consist of; `commands.schema` describes them."""

from orchestrate.catalog import Model as Model
from orchestrate.data.operations.check import CheckReport as CheckReport
from orchestrate.data.operations.convert import ConvertReport as ConvertReport
from orchestrate.data.operations.dedupe import DedupeReport as DedupeReport
from orchestrate.data.operations.fix import FixReport as FixReport
from orchestrate.data.operations.generate import GenerateReport as GenerateReport
from orchestrate.data.operations.inspect import InspectReport as InspectReport
from orchestrate.data.operations.preview import PreviewReport as PreviewReport
from orchestrate.data.operations.review import ExportReport as ExportReport
from orchestrate.data.operations.review import ReviewCounts as ReviewCounts
from orchestrate.data.operations.split import SplitReport as SplitReport
from orchestrate.local.speed.throughput import Bench as Bench
from orchestrate.quoting import Accuracy as Accuracy
from orchestrate.quoting import LivePrice as LivePrice
from orchestrate.quoting import Ownership as Ownership
from orchestrate.quoting import Rate as Rate
from orchestrate.quoting import Reconciliation as Reconciliation
from orchestrate.reports import Comparison as Comparison
from orchestrate.reports.advice import Advice as Advice
from orchestrate.service.backends import Plugin as Plugin
from orchestrate.service.doctor import Check as Check
from orchestrate.service.models import ModelChanges as ModelChanges
from orchestrate.spending import SpendingReport as SpendingReport
from orchestrate.tracking import SyncReport as SyncReport
from orchestrate.tracking.recovery import Recovery as Recovery
