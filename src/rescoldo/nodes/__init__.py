"""One run on several machines: torchrun starts the same command on each, gloo connects them.

One leads: it runs the loop as ever, writes all files, owns the checkpoints. The others follow: they hold the same
model, optimizer and data, and compute gradients and losses of the examples they are given. So there is one loop and one
place where a run is saved. The gradients are summed everywhere and each machine makes the optimizer's step itself, so
nothing but that sum is waited for; what is saved and what is evaluated are the leader's weights.

`launch` is above all that: it is what the user starts, and starts torchrun, which starts `worker`.
"""

from __future__ import annotations

from rescoldo.nodes.follower import follow
from rescoldo.nodes.group import Group, current_group, joined
from rescoldo.nodes.leader import Leader
from rescoldo.nodes.place import current_place

__all__ = ["Group", "Leader", "current_group", "current_place", "follow", "joined"]
