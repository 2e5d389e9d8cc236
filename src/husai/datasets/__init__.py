"""The project's Kedro datasets: how files are read and written by the catalog."""

from husai.errors import needs

needs("kedro", "project")

from husai.datasets.documents import DocumentDataset
from husai.datasets.external import ExternalSAEs
from husai.datasets.handles import DirectoryHandle
from husai.datasets.optional import EarlierTable
from husai.datasets.partitions import PlanDataset, PlannedPartitionedDataset, ReadOncePartitions
from husai.datasets.previews import FigureDataset, PageDataset
from husai.datasets.tensors import TensorDataset

__all__ = [
    "DirectoryHandle",
    "DocumentDataset",
    "EarlierTable",
    "ExternalSAEs",
    "FigureDataset",
    "PageDataset",
    "PlanDataset",
    "PlannedPartitionedDataset",
    "ReadOncePartitions",
    "TensorDataset",
]
