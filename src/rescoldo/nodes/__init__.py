"""One run on several machines: torchrun starts the same command on each, gloo connects them.

One leads: it runs the loop as ever, writes all files, owns the checkpoints. The others follow: they hold the same
model, optimizer and data, and compute gradients and losses of the examples they are given. So there is one loop and one
place where a run is saved. The gradients are summed everywhere and each machine makes the optimizer's step itself, so
nothing but that sum is waited for; what is saved and what is evaluated are the leader's weights.

`together.train_here` chooses between the two. `launch` is above all that: it is what the user starts, and starts
torchrun, which starts `cli.worker`.
"""
