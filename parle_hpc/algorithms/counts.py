"""How far an optimiser is, in mini-batches and in rounds."""


class Counts:
    """Rounds of `round_length` mini-batches each.

    Attributes:
        steps: mini-batches done so far, k.
        round_length: mini-batches in a round, for counting and reporting.
    """

    steps = 0
    round_length: int

    @property
    def progress(self) -> tuple[int, int]:
        """(Rounds completed, mini-batches done of the next one)."""
        return divmod(self.steps, self.round_length)

    @property
    def steps_in_round(self) -> int:
        """Mini-batches of this replica in the round under way."""
        return self.round_length

    @property
    def nominal_steps(self) -> int:
        """Mini-batches done, round_length in each round: what is the same on all replicas, and schedules count."""
        return self.steps
