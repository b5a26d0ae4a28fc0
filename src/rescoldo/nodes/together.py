"""A run in this process: alone or, according to torchrun's environment, as leader or follower."""

from __future__ import annotations

from rescoldo.nodes.follower import follow
from rescoldo.nodes.group import current_group, joined
from rescoldo.nodes.leader import Leader
from rescoldo.nodes.place import current_folder
from rescoldo.run.layout import LOG_FILE
from rescoldo.run.streams import unfailing
from rescoldo.training.config import RunConfig
from rescoldo.training.parts import Parts
from rescoldo.training.progress import Reporter
from rescoldo.training.start import RunResult, train


def train_here(
    config: RunConfig,
    parts: Parts,
    *,
    restart: bool = False,
    adapter_bin: bool = False,
    force: bool = False,
    reporter: Reporter | None = None,
) -> RunResult:
    """`training.start.train` for a process that may be one of several machines. The leader trains and writes; the
    others compute for it, and return the status "followed", or "interrupted" if a signal ended them.

    Args:
        config, parts, restart, adapter_bin, force, reporter: see `train`.

    Raises:
        RescoldoError: see `train`; or this machine has other data or settings than the leader, or has lost it.
    """
    reporter = reporter or Reporter()
    group = current_group()
    if group is None:
        return train(config, parts, restart=restart, adapter_bin=adapter_bin, force=force, reporter=reporter)
    with unfailing(config.output / LOG_FILE), joined(group) as group:
        if not group.leads:
            left = follow(config, parts, group, reporter)
            return RunResult("interrupted" if left else "followed", config.output, signal=left)
        leader = Leader(parts, group)
        result = train(config, leader.parts(), restart=restart, adapter_bin=adapter_bin, force=force, reporter=reporter)
        place = current_folder()
        leader.stop(over=not result.interrupted or place is None or place.stopping)
        return result
