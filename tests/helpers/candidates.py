"""Files of a base and of three candidates, and what comparing their arrays gives."""

import numpy as np

from tokenloss import compare


class Many:
    """A text of two shards, of 13 and 27 tokens in five sequences, some of which are ignored."""

    def __init__(self, path):
        rng = np.random.default_rng(17)
        self.path = path
        self.base = rng.normal(size=(40, 11), scale=3).astype(np.float32)
        noises = {"q8": 0.1, "q2": 1.5, "q4": 0.5}
        self.logits = {name: self.base + rng.normal(size=(40, 11), scale=noise) for name, noise in noises.items()}
        self.targets = rng.integers(11, size=40)
        self.targets[::7] = -100
        self.segment_ids = np.repeat([0, 1, 0, 1, 2], [6, 7, 10, 9, 8])
        self.tokens = np.array([f" <{i}>" for i in range(40)])
        for name in ("base", *noises):
            (path / name).mkdir()
            for number, part in enumerate(np.split(np.arange(40), [13])):
                held = {} if name in noises else {
                    "targets": self.targets[part], "segment_ids": self.segment_ids[part], "tokens": self.tokens[part],
                }  # fmt: skip
                scores = self.base if name == "base" else self.logits[name]
                np.savez(path / name / f"part-{number}.npz", logits=scores[part], **held)

    @property
    def sequences(self):
        """Numbers that count on from shard to shard."""
        return self.segment_ids + np.where(np.arange(40) < 13, 0, 2)

    def argv(self, *names):
        return "compare", self.path / "base", *(f"{name}={self.path / name}" for name in names or self.logits)

    def comparison(self, name, **options):
        return compare(self.base, self.logits[name], self.targets, segment_ids=self.sequences, **options)
