"""One run on several machines: torchrun starts the same command on each, gloo connects them.

One process leads: it runs the usual loop, writes all files and owns the checkpoints. The others follow: they have the
same model, optimizer and data, and compute gradients and losses of the examples assigned to them. So there is one loop,
and one place where a run is saved. The gradients are all-reduced, and each machine makes the optimizer's update itself,
so a step only waits for the gradients' sum; the leader's weights are the ones that are saved and evaluated.

`together.train_here` chooses between leading and following. `launch` is what the user starts; it starts torchrun, which
starts `cli.worker`.
"""
