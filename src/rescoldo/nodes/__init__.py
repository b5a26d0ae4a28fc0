"""One run on several machines: torchrun starts the same command on each, gloo connects them.

One leads: it runs the loop as ever, writes all files, owns optimizer and checkpoints. The others follow: they hold the
same model and data, and answer with gradients and losses of the examples they are given. So there is one loop, one
place where a run is saved, and machines with different processors never drift apart: the weights come from the leader.

`launch` is above all that: it is what the user starts, and starts torchrun, which starts `worker`.
"""

from __future__ import annotations

from rescoldo.nodes.follower import follow
from rescoldo.nodes.group import Group, current_group, joined
from rescoldo.nodes.leader import Leader
from rescoldo.nodes.place import current_place

__all__ = ["Group", "Leader", "current_group", "current_place", "follow", "joined"]
