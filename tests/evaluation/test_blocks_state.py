"""An engine's loop over blocks that stops and goes on from its state."""

import base64
import itertools

import numpy as np
import pytest
from arrays import fails

from tokenloss import evaluate, sinks
from tokenloss.formats import blocks as opened_blocks

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


# special tokens, bytes, and words with and without a space before them
PIECES = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "\u2581a", "a"]
SEQUENCES = {
    "none": lambda rng: None,
    "in order": lambda rng: np.repeat([3, -1, 7, 8, 1], [11, 2, 1, 20, 14]),
    "in any order": lambda rng: rng.integers(-1, 3, size=48),
    "texts of a batch": None,
}
# every combination of three options, each with the next tokenizer
OPTIONS = [
    (*options, tokenizer)
    for options, tokenizer in zip(
        itertools.product([None, False, True], ["none", "some", "all"], SEQUENCES),
        itertools.cycle(["none", "bytes", "space"]),
        strict=False,
    )
]


@pytest.fixture
def tokenizers(tmp_path):
    """Files of a tokenizer of bytes, and of one that puts a space before a text, which then does not count."""
    ranks = (f"{base64.b64encode(piece.encode()).decode()} {i}" for i, piece in enumerate(PIECES))
    (tmp_path / "bytes.tiktoken").write_text("\n".join(ranks), encoding="ascii")
    made = pytest.importorskip("tokenizers")
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    bpe = made.Tokenizer(made.models.BPE(vocab=vocabulary, merges=[("\u2581", "a")], byte_fallback=True))
    prepend, spaces = made.normalizers.Prepend("\u2581"), made.normalizers.Replace(" ", "\u2581")
    bpe.normalizer = made.normalizers.Sequence([prepend, spaces])
    spaces, bytes_ = made.decoders.Replace("\u2581", " "), made.decoders.ByteFallback()
    bpe.decoder = made.decoders.Sequence([spaces, bytes_, made.decoders.Fuse(), made.decoders.Strip(" ", 1, 0)])
    bpe.add_special_tokens(PIECES[:2])
    bpe.save(str(tmp_path / "space.json"))
    return {"none": None, "bytes": tmp_path / "bytes.tiktoken", "space": tmp_path / "space.json"}


def made_blocks(rng, sequences, mask):
    """Eight blocks of 48 rows, one of them empty and some of a single row; masks of some or of all of them."""
    logits = rng.normal(size=(48, len(PIECES)), scale=3).astype(np.float32)
    ids = rng.choice([1, 1, 100, 110, 258, 259, 259, 260], size=48)
    ids[rng.random(48) < 0.15] = -100
    where, numbers = rng.random(48) < 0.8, None
    bounds = [0, *np.sort(rng.integers(1, 47, size=5)), 47, 48]
    if sequences == "texts of a batch":
        bounds = [0, 4, 8, 8, 20, 24, 32, 48]
    else:
        numbers = SEQUENCES[sequences](rng)
        bounds.insert(3, bounds[3])
    parts = [slice(*pair) for pair in itertools.pairwise(bounds)]
    blocks = []
    for number, part in enumerate(parts):
        arrays = [logits[part], ids[part], where[part] if mask == "all" or (mask == "some" and number % 2) else None]
        arrays += [] if numbers is None else [numbers[part]]
        if sequences == "texts of a batch":
            arrays = [None if one is None else one.reshape(-1, 4, *one.shape[1:]) for one in arrays]
        blocks.append(tuple(arrays))
    return blocks


def all_of(evaluation):
    """All figures but those of the run itself."""
    figures = evaluation.to_dict()
    return {name: figures[name] for name in figures if name not in ("seconds", "gb_per_second", "n_bytes_read")}


@pytest.mark.filterwarnings("ignore:.* repeat the special token")
@pytest.mark.parametrize(("shift", "mask", "sequences", "tokenizer"), OPTIONS)
def test_a_run_that_is_killed_after_each_block_is_the_unbroken_one(
    shift, mask, sequences, tokenizer, tokenizers, tmp_path
):
    blocks = made_blocks(np.random.default_rng([len(mask), len(sequences)]), sequences, mask)
    options = {"shift": shift, "top": 60}

    def opened(source):
        return opened_blocks(source, tokenizer=tokenizers[tokenizer])

    whole = evaluate(opened(blocks), **options)
    assert sequences != "in any order" or tokenizer == "none" or whole.n_bytes > 0
    expected = all_of(whole)
    for stop in range(len(blocks)):
        for path in tmp_path / f"{stop}.state", tmp_path / "all.state":  # killed once, and again and again
            with pytest.raises(KeyboardInterrupt):
                evaluate(opened(Engine(blocks, stop)), **options, state=path)
        engine = Engine(blocks)
        resumed = evaluate(opened(engine), **options, state=tmp_path / f"{stop}.state")
        assert resumed == whole
        np.testing.assert_equal(all_of(resumed), expected)
        assert engine.made[0] == max((number for number in range(stop) if blocks[number][0].size), default=0)
    np.testing.assert_equal(all_of(evaluate(opened(Engine(blocks)), **options, state=tmp_path / "all.state")), expected)
    content = (tmp_path / "all.state").read_bytes()
    assert content == (tmp_path / "3.state").read_bytes()


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
        (changed(6, targets=TARGETS[:10]), {}, "contains the result of block 6, which differs in targets"),
        (changed(6, where=None), {}, "contains the result of block 6, which differs in where"),
        (changed(6, segment_ids=IDS[:10]), {}, "contains the result of block 6, which differs in segment_ids"),
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
    with fails(ValueError, "state: contains the result of block 2, which differs in logits"):
        evaluate(lambda first: blocks, state=state)
    near = [(logits + RNG.normal(size=logits.shape, scale=0.02), targets) for logits, _ in blocks]
    assert evaluate(lambda first: near[first:], state=state).count == 20  # as rounding may differ


def test_other_logits_are_not_compared(tmp_path):
    whole = evaluate(Engine(BLOCKS["ids"]), state=tmp_path / "s")
    block = BLOCKS["ids"][6]
    assert evaluate(Engine(changed(6, logits=block[0] + 1e-3)), state=tmp_path / "s").meter == whole.meter


def test_what_cannot_have_a_state(tmp_path, npz):
    path, blocks = tmp_path / "s", BLOCKS["tokens"]
    words = "source is an iterable, which starts at its first block; state needs a source that can start at any part"
    with fails(ValueError, words, "files, or a function of the number of the first block"):
        evaluate(blocks, state=path)
    with pytest.raises(TypeError, match=r"source\(0\) is 'NoneType'; it must be an iterable of blocks"):
        evaluate(lambda first: None, state=path)
    with pytest.raises(ValueError, match=r"source\(0\) is empty"):
        evaluate(lambda first: [])
    with pytest.raises(
        ValueError, match="TokenTable needs every token, and state keeps only sums; run once with state, for"
    ):
        evaluate(Engine(blocks), state=path, sinks=[sinks.TokenTable(tmp_path / "t.npy")])
    evaluate(Engine(blocks), state=path)
    with pytest.raises(ValueError, match="was written with source 'blocks'; it must be another file, with 'scores'"):
        evaluate([npz(logits=LOGITS, targets=TARGETS)], state=path)
