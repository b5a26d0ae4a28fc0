"""Which of two answers people or a judge prefer: ballots, votes on disk, statistics of preferences."""
