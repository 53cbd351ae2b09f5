"""An engine's loop over blocks that stops and goes on from its state."""

import itertools

import numpy as np
import pytest
from arrays import fails

from tokenloss import evaluate, sinks

RNG = np.random.default_rng(43)
LOGITS, TARGETS = RNG.normal(size=(40, 9), scale=3).astype(np.float32), RNG.integers(9, size=40)
TARGETS[::7] = -100
MASK = RNG.random(40) < 0.9
IDS = np.array([3] * 9 + [-1] * 3 + [5] * 20 + [3] * 8)
BOUNDS = [0, 1, 9, 12, 12, 13, 30, 40]
KINDS = {
    "tokens": lambda part: (LOGITS[part], TARGETS[part]),
    "masked": lambda part: (LOGITS[part], TARGETS[part], MASK[part]),
    "sequences": lambda part: (LOGITS[part][None], TARGETS[part][None], MASK[part][None]),
    "ids": lambda part: (LOGITS[part], TARGETS[part], MASK[part], IDS[part]),
}
BLOCKS = {kind: [make(slice(*pair)) for pair in itertools.pairwise(BOUNDS)] for kind, make in KINDS.items()}


class Engine:
    """Makes blocks, and fails before one of them; its buffers are used again."""

    def __init__(self, blocks, stop=None):
        self.blocks, self.stop, self.made = blocks, stop, []

    def __call__(self, first):
        for number, block in enumerate(self.blocks[first:], first):
            if number == self.stop:
                raise KeyboardInterrupt
            arrays = tuple(None if array is None else array.copy() for array in block)
            self.made.append(number)
            yield arrays
            for array in arrays:
                if array is not None:
                    array[:] = 0


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_goes_on_where_it_stopped(kind, shift, tmp_path):
    blocks = BLOCKS[kind] if kind == "sequences" or not shift else BLOCKS["ids"]
    whole = evaluate(blocks, shift=shift, top=9)
    assert evaluate(Engine(blocks), shift=shift, top=9) == whole
    for stop in range(len(blocks)):
        path = tmp_path / f"{stop}.state"
        with pytest.raises(KeyboardInterrupt):
            evaluate(Engine(blocks, stop), shift=shift, state=path, top=9)
        engine = Engine(blocks)
        resumed = evaluate(engine, shift=shift, state=path, top=9)
        assert resumed.figures["n_bytes_read"] <= whole.figures["n_bytes_read"]
        assert resumed == whole
        assert engine.made == [*range(max(0, stop - 1 - (stop == 4)), len(blocks))]  # block 3 has no last row
        again = Engine(blocks)
        assert evaluate(again, shift=shift, state=path, top=2).meter == whole.meter
        assert again.made == [len(blocks) - 1]


def test_a_run_that_ends_in_the_middle_of_a_line_goes_on(tmp_path):
    path, blocks = tmp_path / "s", BLOCKS["ids"]
    whole = evaluate(Engine(blocks), state=path)
    data = path.read_bytes()
    for cut in range(data.index(b"\n") + 1, len(data), 997):
        path.write_bytes(data[:cut])
        assert evaluate(Engine(blocks), state=path).sequences["nll"].tolist() == whole.sequences["nll"].tolist()
        assert path.read_bytes() == data


def test_a_damaged_line_is_refused_with_its_number(tmp_path):
    path, blocks = tmp_path / "s", BLOCKS["ids"]
    whole = evaluate(Engine(blocks), state=path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"x" + lines[3], *lines[4:]]))
    with pytest.raises(ValueError, match=r"line 4: is damaged; .* without this line and those after it, what is miss"):
        evaluate(Engine(blocks), state=path)
    path.write_bytes(b"".join(lines[:3]))
    assert evaluate(Engine(blocks), state=path) == whole


def changed(number, **arrays):
    names = ("logits", "targets", "where", "segment_ids")
    blocks = [*BLOCKS["ids"]]
    blocks[number] = tuple(arrays.get(name, array) for name, array in zip(names, blocks[number], strict=True))
    return blocks


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        (changed(6, targets=TARGETS[:10]), {}, "holds the result of block 6 with other targets"),
        (changed(6, where=None), {}, "holds the result of block 6 with other where"),
        (changed(6, segment_ids=IDS[:10]), {}, "holds the result of block 6 with other segment_ids"),
        (BLOCKS["ids"][:6], {}, r"source\(6\) is empty; it must be an iterable of blocks"),
        (BLOCKS["ids"], {"shift": True}, "was written with shift None; it must be another file, with True"),
        (BLOCKS["ids"], {"top": 6}, "was written with top 5; it must be another file, with 6"),
        (BLOCKS["masked"], {}, "segment_ids is None; it must be as in earlier blocks"),
    ],
)
def test_a_state_of_other_blocks_is_refused(blocks, options, message, tmp_path):
    evaluate(Engine(BLOCKS["ids"]), state=tmp_path / "s")
    with pytest.raises(ValueError, match=message):
        evaluate(Engine(blocks), state=tmp_path / "s", **options)


def test_a_source_that_ignores_its_argument_is_refused_where_all_targets_are_equal(tmp_path):
    """It would make the first block again in the place of the last one, and count others twice."""
    targets = np.zeros(5, int)
    blocks = [(RNG.normal(size=(5, 9)), targets) for _ in range(4)]
    state = tmp_path / "state"
    evaluate(lambda first: blocks[first:3], state=state)
    with fails(ValueError, "state: holds the result of block 2 with other logits"):
        evaluate(lambda first: blocks, state=state)
    near = [(logits + RNG.normal(size=logits.shape, scale=0.02), targets) for logits, _ in blocks]
    assert evaluate(lambda first: near[first:], state=state).count == 20  # as rounding may differ


def test_other_logits_are_not_compared(tmp_path):
    whole = evaluate(Engine(BLOCKS["ids"]), state=tmp_path / "s")
    block = BLOCKS["ids"][6]
    assert evaluate(Engine(changed(6, logits=block[0] + 1e-3)), state=tmp_path / "s").meter == whole.meter


def test_what_cannot_have_a_state(tmp_path, npz):
    path, blocks = tmp_path / "s", BLOCKS["tokens"]
    with pytest.raises(TypeError, match="source is 'list'; it must be a function of the number of the first block"):
        evaluate(blocks, state=path)
    with pytest.raises(TypeError, match=r"source\(0\) is 'NoneType'; it must be an iterable of blocks"):
        evaluate(lambda first: None, state=path)
    with pytest.raises(ValueError, match=r"source\(0\) is empty"):
        evaluate(lambda first: [])
    with pytest.raises(
        ValueError, match="TokenTable needs every token, and state keeps sums alone; run once with state, for"
    ):
        evaluate(Engine(blocks), state=path, sinks=[sinks.TokenTable(tmp_path / "t.npy")])
    evaluate(Engine(blocks), state=path)
    with pytest.raises(ValueError, match="was written with source 'blocks'; it must be another file, with 'files'"):
        evaluate([npz(logits=LOGITS, targets=TARGETS)], state=path)
