"""The Ray that trials run on: a cluster's, or one of this machine."""

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch

_SECONDS_TO_CONNECT = 10.0


def default_gpus() -> float:
    """GPUs a trial: one where there are any, else none."""
    return 1.0 if torch.cuda.is_available() else 0.0


@contextmanager
def connect(address: str | None) -> Iterator[None]:
    """Join the Ray cluster at ``address``, or start Ray on this machine and end it afterwards.

    Raises:
        ConnectionError: there is no cluster at ``address``.
    """
    _check_reachable(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options["num_cpus"] = len(os.sched_getaffinity(0))
        options["include_dashboard"] = False
    ray.init(address=address or "local", **options)
    try:
        yield
    finally:
        ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """Ray tries an address that nothing listens at for minutes, and tells it in its log alone."""
    match = re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address or "")
    if match is None:  # "auto" and the like, which Ray looks up itself
        return
    try:
        with socket.create_connection((match[1], int(match[2])), _SECONDS_TO_CONNECT):
            pass
    except (OSError, OverflowError) as error:
        raise ConnectionError(
            f"--address {address}: no Ray cluster answers there ({error}); start one with "
            "`ray start --head`, or leave --address out to run on this machine"
        ) from error
