"""What a run has done so far."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Counts that go on across resumes.

    Attributes:
        step: mini-batches of each replica, nominal ones.
        samples: that all replicas have seen.
        training_seconds: spent in mini-batches and couplings.
        news: sums over the rounds of what a coupling says of the other replicas.
        coupling: what of it, and of the traffic, is the coupling's, as in metrics.jsonl; of the rounds alone, without
            what validations wait for.
    """

    step: int = 0
    samples: int = 0
    training_seconds: float = 0.0
    coupling: Counter = field(default_factory=Counter)
    news: Counter = field(default_factory=Counter)

    def add(self, samples, seconds, coupling, news):
        """A round more; its step was counted as it went."""
        self.samples += samples
        self.training_seconds += seconds
        self.coupling.update(coupling)
        if news:
            self.news.update(news, rounds=1)

    def state_dict(self):
        """What a checkpoint keeps of it."""
        return {
            "step": self.step,
            "samples": self.samples,
            "training_seconds": self.training_seconds,
            "coupling": dict(self.coupling),
            "news": dict(self.news),
        }

    def load_state_dict(self, state):
        """Continue from there."""
        self.step, self.samples, self.training_seconds = (state[k] for k in ("step", "samples", "training_seconds"))
        self.coupling, self.news = Counter(state["coupling"]), Counter(state.get("news", {}))
