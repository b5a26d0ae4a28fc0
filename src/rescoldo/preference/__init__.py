"""Which of two answers is preferred, by people or by a judge: ballots, votes on the disk, statistics of preferences."""
