"""One small Ray cluster for all tests of a process that need one: it costs seconds to start. Not a test file."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MEMORY = 80 * 1024**2  # bytes of each node's object store, the least that Ray takes


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A cluster whose head holds one job at a time; tests add nodes, and take away those they added."""
    pytest.importorskip("ray", reason="the extra `ray` is not installed")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # short: it holds Unix sockets
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": MEMORY, "temp_dir": folder}
    with _same_answer_to_sigterm():
        cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def another_node(cluster: Any) -> Iterator[Any]:
    """A second node of one CPU."""
    with _same_answer_to_sigterm():
        node = cluster.add_node(num_cpus=1, object_store_memory=MEMORY)
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@contextmanager
def _same_answer_to_sigterm() -> Iterator[None]:
    """Ray gives every process that starts a node an answer of its own."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)
