"""tokenizer: bits per byte of the tokens that are scored, whose ids are held against the text before any is."""

import base64
import contextlib
import importlib.util
import itertools
import json
import math

import made_tokenizers
import numpy as np
import pytest
from arrays import fails
from commands import assert_refused, at_most
from places import TESTS

from tokenloss import cross_entropy, evaluate, formats, sinks
from tokenloss._evaluation import token_bytes
from tokenloss.formats import open_scores
from tokenloss.results import Evaluation

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")

tokenizers = pytest.importorskip("tokenizers")
decoders, models, normalizers = tokenizers.decoders, tokenizers.models, tokenizers.normalizers
pre_tokenizers, processors = tokenizers.pre_tokenizers, tokenizers.processors

MODEL = TESTS / "data" / "model"
BPE = tokenizers.Tokenizer.from_file(str(MODEL / "tokenizer.json"))  # of 512 tokens: other scripts are bytes
LINES = (TESTS / "data" / "texts.txt").read_text("utf-8").splitlines()
TEXTS = [LINES[0][:90], "naïve 🙂 café, in two  spaces", "床前明月光", LINES[1][:60], "मनुष्य\tand\xa0more"]
IDS = [np.array(BPE.encode(text).ids) for text in TEXTS]
SIZES = [np.array([len(BPE.id_to_token(i)) for i in ids]) for ids in IDS]  # a character for each byte
RNG = np.random.default_rng(36)
LOGITS = [4 * RNG.standard_normal((len(ids), 512), np.float32) for ids in IDS]  # row j predicts id j + 1
NLL = [
    np.append(np.nan, cross_entropy(rows[:-1], ids[1:], reduction="none"))
    for rows, ids in zip(LOGITS, IDS, strict=True)
]
LENGTH = max(map(len, IDS))
AFTER_FIRST = [np.arange(len(ids)) > 0 for ids in IDS]


def test_oracle_has_the_bytes_of_texts():
    assert [size.sum() for size in SIZES] == [len(text.encode()) for text in TEXTS]


def padded(arrays, value):
    result = np.full((len(arrays), LENGTH, *arrays[0].shape[1:]), value, arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return result


MASK = padded([np.ones(len(ids), int) for ids in IDS], 0)
SEGMENTS = np.repeat(np.arange(len(IDS)), [*map(len, IDS)])
OFFSETS = np.append(0, np.cumsum([*map(len, IDS)]))


def expected(kept=AFTER_FIRST, n_groups=None):
    """Bits per byte of the tokens of a mask for each text, and the error that is clustered by text."""
    nll, n_bytes = (np.array([a[k].sum() for a, k in zip(s, kept, strict=True)]) for s in (NLL, SIZES))
    ratio = nll.sum() / n_bytes.sum()
    n = len(nll)
    stderr = math.sqrt(n / (n - 1) * np.square(nll - ratio * n_bytes).sum()) / n_bytes.sum()
    return n_bytes.tolist(), ratio / math.log(2), stderr / math.log(2)


def assert_expected(result, kept=AFTER_FIRST):
    """Check bits per byte, its error, and the bytes of each sequence."""
    n_bytes, bits, stderr = expected(kept)
    assert result.n_bytes == sum(n_bytes)
    assert result.bits_per_byte == pytest.approx(bits, rel=1e-12)
    assert result.bits_per_byte.stderr == pytest.approx(stderr, rel=1e-9)
    assert result.figures["bytes_are_by_sequence"]
    order = np.argsort(result.sequences["sequence"])  # texts that several files hold come last
    assert result.sequences["n_bytes"][order].tolist() == n_bytes
    assert result.sequences["bits_per_byte"][order] == pytest.approx(
        [nll[k].sum() / n / math.log(2) for nll, k, n in zip(NLL, kept, n_bytes, strict=True)], rel=1e-12
    )


# -- which tokens are scored -------------------------------------------------------------------------------------------


def batch(path):
    np.savez(path / "a.npz", logits=padded(LOGITS, 9), input_ids=padded(IDS, 0), attention_mask=MASK)
    return {"paths": path / "a.npz", "shift": True}


def padded_on_the_left(path):
    logits, ids, mask = (np.stack([np.roll(row, LENGTH - len(own), 0) for row, own in zip(array, IDS, strict=True)])
                         for array in (padded(LOGITS, 9), padded(IDS, 7), MASK))  # fmt: skip
    np.savez(path / "a.npz", logits=logits, input_ids=ids, attention_mask=mask)
    return {"paths": path / "a.npz", "shift": True}


def ignored(path):
    np.savez(path / "a.npz", logits=padded(LOGITS, 9), targets=padded(IDS, 777))
    return {"paths": path / "a.npz", "shift": True, "ignore_index": 777}


def packed(path):
    np.savez(path / "a.npz", logits=np.concatenate(LOGITS), targets=np.concatenate(IDS), cu_seqlens=OFFSETS)
    return {"paths": path / "a.npz", "shift": True}


def packed_by_mask(path):
    """The model's mask numbers the texts of a row, and segment ids those of all."""
    np.savez(
        path / "a.npz", logits=np.concatenate(LOGITS)[None], input_ids=np.concatenate(IDS)[None].astype(np.uint64),
        attention_mask=SEGMENTS[None] + 1, segment_ids=SEGMENTS[None],
    )  # fmt: skip
    return {"paths": path / "a.npz", "shift": True}


def shards(path):
    """Texts go on from file to file; one of the files is empty."""
    bounds = [0, 3, 60, 60, OFFSETS[2] + 1, OFFSETS[3], OFFSETS[-1]]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        np.savez(path / f"{number}.npz", logits=np.concatenate(LOGITS)[start:stop])
    np.save(path / "ids.npy", np.concatenate(IDS))
    np.save(path / "segments.npy", SEGMENTS)
    return {"paths": path / "*.npz", "targets": path / "ids.npy", "segment_ids": path / "segments.npy", "shift": True}


LAYOUTS = [batch, padded_on_the_left, ignored, packed, packed_by_mask, shards]


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("\n".join(TEXTS).encode() + b"\n")
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_gives_bits_per_byte_of_each_layout(layout, text, tmp_path, monkeypatch):
    monkeypatch.setattr(token_bytes, "_PIECE", 7)
    options = layout(tmp_path)
    result = evaluate(open_scores(**options, tokenizer=MODEL))
    assert_expected(result)
    assert_expected(evaluate(open_scores(**options, tokenizer=MODEL / "tokenizer.json"), text=text))
    bare = evaluate(open_scores(**options))
    assert (bare.loss, bare.loss.stderr, bare.n_bytes) == (result.loss, result.loss.stderr, 0)
    assert "n_bytes" not in bare.sequences


def test_tokenizer_with_text_counts_words_of_the_text_and_bytes_of_tokens(text, tmp_path):
    result = evaluate(open_scores(**batch(tmp_path), tokenizer=MODEL), text=text)
    assert (result.n_bytes, result.n_words) == (sum(expected()[0]), len(text.read_text("utf-8").split()))


def test_tokenizer_counts_the_tokens_of_a_mask_alone(tmp_path):
    kept = [np.arange(len(ids)) >= len(ids) // 2 for ids in IDS]
    labels = [np.where(k, ids, -100) for k, ids in zip(kept, IDS, strict=True)]
    np.savez(tmp_path / "labels.npz", logits=padded(LOGITS, 9), labels=padded(labels, -100))
    assert_expected(evaluate(open_scores(tmp_path / "labels.npz", tokenizer=MODEL), shift=True), kept)
    answers = padded(kept, False)
    where = np.append(answers[:, 1:], np.zeros((len(IDS), 1), bool), 1)  # of the row that predicts
    ids = np.append(padded(IDS, 0)[:, 1:], np.zeros((len(IDS), 1), int), 1)
    assert_expected(evaluate(formats.blocks([(padded(LOGITS, 9), ids, where)], tokenizer=MODEL)), kept)


def test_tokenizer_of_special_tokens_counts_their_loss_without_bytes():
    logits = 4 * RNG.standard_normal((1, 3, 512))
    ids = np.array([[0, BPE.token_to_id("a"), 0]])  # the special token begins and ends a text
    result = evaluate(formats.blocks([(logits, ids)], tokenizer=MODEL))
    assert (result.n_bytes, result.count) == (1, 3)
    assert result.bits_per_byte == pytest.approx(cross_entropy(logits, ids, reduction="sum") / math.log(2))
    assert math.isnan(evaluate(formats.blocks([(logits[:, :1], ids[:, :1])], tokenizer=MODEL)).bits_per_byte)


def test_tokenizer_of_tokens_without_sequences_counts_each_token(tmp_path):
    nll, sizes = (np.concatenate([one[1:] for one in side]) for side in (NLL, SIZES))
    rows, ids = (np.concatenate(side) for side in ([r[:-1] for r in LOGITS], [i[1:] for i in IDS]))
    np.savez(tmp_path / "a.npz", logits=rows[:40], targets=ids[:40])
    np.savez(tmp_path / "b.npz", logits=rows[40:], targets=ids[40:])
    result = evaluate(open_scores([tmp_path / "a.npz", tmp_path / "b.npz"], tokenizer=MODEL))
    ratio, n = nll.sum() / sizes.sum(), len(nll)
    assert (result.n_bytes, result.is_clustered) == (sizes.sum(), False)
    assert result.bits_per_byte == pytest.approx(ratio / math.log(2))
    stderr = math.sqrt(n / (n - 1) * np.square(nll - ratio * sizes).sum()) / sizes.sum() / math.log(2)
    assert result.bits_per_byte.stderr == pytest.approx(stderr)
    assert evaluate(formats.blocks([(rows, ids)], tokenizer=MODEL)).meter == result.meter


def test_tokenizer_of_tokens_outside_of_sequences_counts_each_as_one():
    rows, ids = (np.concatenate(side) for side in ([r[:-1] for r in LOGITS], [i[1:] for i in IDS]))
    segments = np.repeat(np.arange(len(IDS)), [len(one) - 1 for one in IDS])
    segments[segments == 1] = -1
    result = evaluate(formats.blocks([(rows, ids, None, segments)], tokenizer=MODEL))
    pairs = [(nll[1:].sum(), sizes[1:].sum()) for i, (nll, sizes) in enumerate(zip(NLL, SIZES, strict=True)) if i != 1]
    nll, sizes = np.array([*pairs, *zip(NLL[1][1:], SIZES[1][1:], strict=True)]).T
    ratio, n = nll.sum() / sizes.sum(), len(nll)
    stderr = math.sqrt(n / (n - 1) * np.square(nll - ratio * sizes).sum()) / sizes.sum()
    assert (result.n_bytes, result.figures["n_without_sequence"]) == (sizes.sum(), len(IDS[1]) - 1)
    assert result.bits_per_byte == pytest.approx(ratio / math.log(2))
    assert result.bits_per_byte.stderr == pytest.approx(stderr / math.log(2))


@pytest.mark.parametrize("of_text", [False, True])
def test_tokenizer_of_windows_counts_each_token_of_the_text_once(of_text, text, tmp_path):
    size, stride, ids = 20, 8, IDS[0]
    starts = range(0, len(ids) - size + stride, stride)
    windows = [np.arange(start, min(start + size, len(ids))) for start in starts]
    logits = [np.zeros((len(window), 512), np.float32) for window in windows]
    np.save(tmp_path / "logits.npy", np.concatenate(logits))
    np.save(tmp_path / "ids.npy", ids if of_text else ids[np.concatenate(windows)])
    text.write_text(TEXTS[0], "utf-8")
    options = {"window": size, "stride": stride, "tokenizer": MODEL}
    result = evaluate(open_scores(tmp_path / "logits.npy", tmp_path / "ids.npy", **options), text=text)
    assert (result.n_bytes, result.count) == (SIZES[0][1:].sum(), len(ids) - 1)
    assert result.bits_per_byte == pytest.approx((len(ids) - 1) * math.log2(512) / SIZES[0][1:].sum())


@pytest.mark.parametrize("name", made_tokenizers.TOKENIZERS)
def test_tokenizer_of_each_family_has_the_bytes_of_lines_of_many_scripts(name, text, tmp_path):
    made = made_tokenizers.make(name, tmp_path)
    lines = [line for line in made_tokenizers.lines(60) if line == line.strip()]
    texts = [made.encode(line) for line in lines]
    offsets = np.append(0, np.cumsum([*map(len, texts)]))
    ids = np.concatenate(texts)
    logits = np.zeros((len(ids), max(ids) + 2), np.float16)
    np.savez(tmp_path / "a.npz", logits=logits, targets=ids, cu_seqlens=offsets)
    text.write_bytes("\n".join(lines).encode())
    with pytest.warns(UserWarning, match="white space") if name == "WordPiece" else contextlib.nullcontext():
        result = [evaluate(open_scores(tmp_path / "a.npz", tokenizer=made.path), text=text)]
    if name != "WordPiece":
        blocks = [(logits[start:stop][None], ids[start:stop][None]) for start, stop in itertools.pairwise(offsets)]
        sources = open_scores(tmp_path / "a.npz", tokenizer=made.path), formats.blocks(blocks, tokenizer=made.path)
        result += [evaluate(source) for source in sources]
    for one in result:
        assert one.sequences["n_bytes"].tolist() == [len(line.encode()) for line in lines]


# -- sums --------------------------------------------------------------------------------------------------------------


def blocks(first=0, stop=None):
    """Rows of all texts, block by block, with the numbers of their texts."""
    for number, (start, end) in enumerate(itertools.pairwise([0, 1, 30, 30, OFFSETS[1], OFFSETS[1] + 7, OFFSETS[-1]])):
        if number == stop:
            raise KeyboardInterrupt
        if number >= first:
            yield np.concatenate(LOGITS)[start:end], np.concatenate(IDS)[start:end], None, SEGMENTS[start:end]


def test_tokenizer_of_blocks_and_their_state(tmp_path):
    whole = evaluate(formats.blocks(blocks(), tokenizer=MODEL), shift=True)
    assert_expected(whole)
    of_texts = [(rows[None], ids[None]) for rows, ids in zip(LOGITS, IDS, strict=True)]
    assert evaluate(formats.blocks(of_texts, tokenizer=MODEL), shift=True).meter == whole.meter
    for stop in range(1, 6):
        options = {"shift": True, "state": tmp_path / f"{stop}"}
        stopped = formats.blocks(lambda first, stop=stop: blocks(first, stop), tokenizer=MODEL)
        with pytest.raises(KeyboardInterrupt):
            evaluate(stopped, **options)
        assert evaluate(formats.blocks(blocks, tokenizer=MODEL), **options) == whole
    with pytest.raises(ValueError, match=r"was written with tokenizer '.*'; it must be another file, with None"):
        evaluate(blocks, **options)


def test_tokenizer_of_parts_has_the_bits_of_the_whole(tmp_path, monkeypatch):
    """Shards with a state, on a cluster, and evaluations that are added up."""
    source = open_scores(**shards(tmp_path), tokenizer=MODEL)
    whole = evaluate(open_scores(**packed(tmp_path / ".."), tokenizer=MODEL))
    result = [evaluate(source, state=tmp_path / "state") for _ in range(2)]
    if importlib.util.find_spec("dask"):
        of_workers = "tokenloss._evaluation.cluster.map_shards"
        monkeypatch.setattr(of_workers, lambda function, shards, _: enumerate(map(function, shards)))
        result.append(evaluate(source, scheduler="here"))
    parts = [
        evaluate(formats.blocks([(rows[None], ids[None])], tokenizer=MODEL), shift=True)
        for rows, ids in zip(LOGITS, IDS, strict=True)
    ]
    for one in [*result, Evaluation.of_parts(parts), sum(parts)]:
        assert one.meter == whole.meter
        assert sorted(one.sequences["n_bytes"]) == sorted(whole.sequences["n_bytes"])
        tokens, expected_tokens = (each.figures["highest_loss_tokens"] for each in (one, whole))
        assert [(token["nll"], token["text"]) for token in tokens] == [(t["nll"], t["text"]) for t in expected_tokens]
    bare = evaluate([(LOGITS[0][None], IDS[0][None])], shift=True)
    with pytest.raises(ValueError, match="cannot be merged: tokenizer is"):
        parts[0] + bare


def changed(path, change):
    """Another version of the tokenizer's file."""
    said = json.loads((MODEL / "tokenizer.json").read_text("utf-8"))
    change(said)
    (path / "tokenizer.json").write_text(json.dumps(said), "utf-8")
    return path


def test_state_of_another_tokenizer_is_refused(command, tmp_path):
    argv = ["score", batch(tmp_path)["paths"], "--shift", "--state", tmp_path / "state", "--tokenizer"]
    assert command(*argv, MODEL)[0] == 0
    other = changed(tmp_path, lambda said: said["added_tokens"].append(said["added_tokens"][0] | {"id": 300}))
    assert_refused(command(*argv, other), "was written with tokenizer '", "be another file")


@pytest.mark.parametrize("gap", ["", "\n", " \n"])
def test_documents_of_white_space_take_time_linear_in_their_number(gap, tmp_path):
    """It was quadratic: 40 seconds for 80,000 of them."""
    n = 80_000
    (tmp_path / "t.tiktoken").write_text("IA== 0\nYQ== 1\n")
    (tmp_path / "t.txt").write_text(f" {gap}" * n)
    path = tmp_path / "a.npz"
    np.savez(path, logits=np.zeros((n, 2), np.float32), targets=np.zeros(n, int), segment_ids=np.arange(n))
    with at_most(20):
        result = evaluate(open_scores(path, tokenizer=tmp_path / "t.tiktoken"), text=tmp_path / "t.txt", shift=False)
    assert (result.n_bytes, result.count) == (n, n)


# -- first tokens, white space, unknown tokens -------------------------------------------------------------------------


LLAMA = {"<unk>": 0, "<s>": 1} | {f"<0x{byte:02X}>": 2 + byte for byte in range(256)} | {"▁": 258, "▁a": 259, "a": 260}
OF_LLAMA = ["a a a", "xa a"]  # x is a byte after ▁


def llama(path):
    """The ids of two texts by a tokenizer that puts a space before a text, as Llama 2 has it; it is saved."""
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=LLAMA, merges=[("▁", "a")], byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([*steps])
    tokenizer.add_special_tokens(["<unk>", "<s>"])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "text").write_text("\n".join(OF_LLAMA))
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in OF_LLAMA]


@pytest.mark.parametrize("bos", [[], [1]])
def test_tokenizer_leaves_out_the_space_before_a_text(bos, tmp_path):
    """Of the first token that writes anything, wherever files and blocks begin."""
    texts = [np.array(bos + ids) for ids in llama(tmp_path)]
    ids, segments = np.concatenate(texts), np.repeat([4, 2], [*map(len, texts)])
    logits = np.zeros((len(ids), len(LLAMA)), np.float32)
    options = {"shift": True, "tokenizer": tmp_path}
    rows = [(np.zeros((1, len(one), len(LLAMA))), one[None]) for one in texts]
    blocks = [(logits[i : i + 1], ids[i : i + 1], None, segments[i : i + 1]) for i in range(len(ids))]
    for i in range(len(ids)):
        np.save(tmp_path / f"{i}.npy", logits[i : i + 1])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "segments.npy", segments)
    files = [tmp_path / f"{i}.npy" for i in range(len(ids))]
    source = open_scores(files, tmp_path / "ids.npy", segment_ids=tmp_path / "segments.npy", **options)
    result = [evaluate(formats.blocks(made, **options)) for made in (rows, blocks)]
    result += [evaluate(source), evaluate(source, text=tmp_path / "text")]
    expected = sum(map(len, OF_LLAMA)) - (0 if bos else len("a"))  # ▁ of the second text writes nothing
    assert [one.n_bytes for one in result] == [expected] * 4


def test_tokenizer_leaves_out_the_space_before_targets_that_are_next_tokens(tmp_path):
    """They begin with the first token of a text, as <s> is no target, but for an answer whose prompt is ignored."""
    texts = llama(tmp_path)
    np.savez(tmp_path / "a.npz", logits=np.zeros((7, len(LLAMA))), targets=np.concatenate(texts), cu_seqlens=[0, 3, 7])
    source = open_scores(tmp_path / "a.npz", tokenizer=tmp_path)
    result = [evaluate(source), evaluate(source, text=tmp_path / "text")]
    assert [one.sequences["n_bytes"].tolist() for one in result] == [[*map(len, OF_LLAMA)]] * 2
    logits, (_, ids) = np.zeros((1, 4, len(LLAMA))), texts
    answers = (logits, np.array([ids]), np.array([[0, 0, 0, 1]]) > 0), (logits, np.array([[-100, -100, -100, ids[3]]]))
    result = [evaluate(formats.blocks([block], tokenizer=tmp_path)) for block in answers]
    assert [one.n_bytes for one in result] == [len(" a")] * 2


# by when a space is put before a text: the normalizer, the pre-tokenizer and the decoder
PREFIXES = {
    "Prepend": (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None),
    "Metaspace": (None, pre_tokenizers.Metaspace(prepend_scheme="always")),
    "Metaspace before the first": (None, pre_tokenizers.Metaspace(prepend_scheme="first")),
    "ByteLevel": (None, pre_tokenizers.ByteLevel(add_prefix_space=True)),
}


@pytest.mark.filterwarnings("ignore:.* repeat the special token")
@pytest.mark.parametrize("name", PREFIXES)
def test_tokenizer_leaves_out_the_space_that_comes_again_after_special_and_added_tokens(name, tmp_path):
    vocabulary = pre_tokenizers.ByteLevel.alphabet() if name == "ByteLevel" else [*LLAMA][2:]
    vocabulary = {piece: i for i, piece in enumerate(["<unk>", *vocabulary])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    normalizer, tokenizer.pre_tokenizer = PREFIXES[name]
    if normalizer:
        tokenizer.normalizer = normalizer
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.ByteLevel() if name == "ByteLevel" else decoders.Sequence([*steps])
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", normalized=False)])
    ends = [(one, tokenizer.token_to_id(one)) for one in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = "a</s>aa<tool>a a</s></s>a"
    ids = np.array([*tokenizer.encode(text).ids, *tokenizer.encode(text).ids])  # texts in a row
    written = 2 * text.replace("</s>", "")
    logits, expected = np.zeros((len(ids), tokenizer.get_vocab_size())), len(written)
    blocks = [(logits[i : i + 1], ids[i : i + 1], None, np.array([3])) for i in range(len(ids))]
    (tmp_path / "text").write_text(written)
    np.savez(tmp_path / "a.npz", logits=logits[None], targets=ids[None])
    whole = [(logits[None], ids[None])]
    result = [evaluate(formats.blocks(made, tokenizer=tmp_path)) for made in (whole, blocks)]
    source = open_scores(tmp_path / "a.npz", tokenizer=tmp_path)
    result += [evaluate(source), evaluate(source, text=tmp_path / "text")]
    assert [one.n_bytes for one in result] == [expected] * 4


# by what is not of a text: the ids of "a a" with a space before it, as labels or in a batch, and the bytes that count
BEFORE_TEXTS = {
    "padding and BOS": ([-100, -100, 1, 259, 259], 3),
    "BOS that is ignored": ([-100, 259, 259], 3),
    "a prompt that is ignored": ([-100, -100, 259, 259], 4),
    "a prompt with BOS": ([1, -100, -100, 259, 259], 4),
    "texts in a row": ([1, 259, 259, 1, 259, 259], 6),
    "a prompt that ends in a special token": ([1, -100, -100, 1, 259, 259], 3),
}


@pytest.mark.parametrize("name", BEFORE_TEXTS)
def test_tokenizer_of_labels_tells_padding_and_bos_from_prompts(name, tmp_path):
    llama(tmp_path)
    ids, n_bytes = BEFORE_TEXTS[name]
    logits, ids = np.zeros((len(ids), len(LLAMA))), np.array(ids)
    blocks = [(logits[i : i + 1], ids[i : i + 1], None, np.array([5])) for i in range(len(ids))]
    for made in [(logits, ids)], [(logits[None], ids[None])], blocks:
        source = formats.blocks(made, tokenizer=tmp_path)
        assert evaluate(source, shift=True).n_bytes == n_bytes
        if name == "BOS that is ignored":  # which is no target if they are the next tokens
            assert evaluate(source, shift=False).n_bytes == n_bytes + len(" ")
    whole = formats.blocks(lambda first: blocks[first:], tokenizer=tmp_path)
    for stop in range(1, len(blocks)):
        options = {"shift": True, "state": tmp_path / f"state{stop}"}
        evaluate(formats.blocks(lambda first, stop=stop: blocks[first:stop], tokenizer=tmp_path), **options)
        assert evaluate(whole, **options).n_bytes == n_bytes


def test_tokenizer_of_a_batch_that_is_padded_on_the_left_with_an_id_of_text(tmp_path):
    """A mask of a block leaves it out; one that leaves out prompts, which are not of one id, does not begin a text."""
    llama(tmp_path)
    logits, ids = np.zeros((2, 4, len(LLAMA))), np.array([[260, 260, 259, 259], [260, 259, 259, 259]])
    where = np.array([[False, False, True, True], [False, True, True, True]])
    source = formats.blocks([(logits, ids, where)], tokenizer=tmp_path)
    assert evaluate(source).n_bytes == len("a a") + len("a a a")
    ids[0, 0] = 259
    assert evaluate(source).n_bytes == len(" a a") + len(" a a a")


def test_tokenizer_takes_a_single_masked_first_token_of_each_row_for_text(tmp_path):
    llama(tmp_path)
    logits, ids = np.zeros((2, 3, len(LLAMA))), np.full((2, 3), 259)
    where = np.array([[False, True, True]] * 2)
    assert evaluate(formats.blocks([(logits, ids, where)], tokenizer=tmp_path)).n_bytes == 2 * len(" a a")


def test_tokenizer_refuses_several_texts_in_each_element_of_a_batch(tmp_path):
    llama(tmp_path)
    logits, ids = np.zeros((2, 2, 3, len(LLAMA))), np.full((2, 2, 3), 259)
    np.savez(tmp_path / "a.npz", logits=logits, targets=ids)
    options = {"tokenizer": tmp_path}
    for source in formats.blocks([(logits, ids)], **options), open_scores(tmp_path / "a.npz", **options):
        with fails(ValueError, f"logits has shape (2, 2, 3, {len(LLAMA)}); it must be (N, T, V) for N texts"):
            evaluate(source)
    flat = evaluate(formats.blocks([(logits.reshape(4, 3, -1), ids.reshape(4, 3))], **options))
    assert flat.n_bytes == 4 * len("a a a")


def test_tokenizer_of_ranks_lacks_special_ids_which_the_text_proves(command, tmp_path):
    words = ["a", " b", "c"]
    ranks = "".join(f"{base64.b64encode(word.encode()).decode()} {i}\n" for i, word in enumerate(words))
    (tmp_path / "a.tiktoken").write_text(ranks)
    (tmp_path / "text").write_text("a b\nc")
    argv = "score", tmp_path / "a.npz", "--shift", "--tokenizer", tmp_path
    np.savez(tmp_path / "a.npz", logits=np.zeros((6, 7)), input_ids=[5, 0, 1, 4, 2, 4])  # texts in a row
    assert_refused(command(*argv), "= 4 is out of range [0, 3)", "its lines have no special ids")
    result = evaluate(open_scores(tmp_path / "a.npz", tokenizer=tmp_path), shift=True, text=tmp_path / "text")
    assert (result.n_bytes, result.count) == (len("a bc"), 5)
    (tmp_path / "text").write_text("a bxc")
    assert_refused(command(*argv, "--text", tmp_path / "text"), "byte 3", "another text, tokenizer or version")


def test_tokenizer_that_adds_spaces_to_parts_needs_the_text(command, text, tmp_path):
    steps = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel()
    alphabet = {piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Sequence([*steps]), decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    written = "In 1984 it cost 12.50"
    ids = tokenizer.encode(written).ids
    text.write_text(written)
    np.savez(tmp_path / "a.npz", logits=np.zeros((len(ids), 256)), targets=ids)
    result = evaluate(open_scores(tmp_path / "a.npz", tokenizer=tmp_path), text=text)
    assert (len(ids), result.n_bytes) == (len(written) + 10, len(written))  # before In and each part after it
    assert_refused(command("score", tmp_path / "a.npz", "--tokenizer", tmp_path), "or changes a text", "--text")


def test_tokenizer_with_text_counts_the_space_before_a_piece_of_a_text(tmp_path):
    (ids, _) = llama(tmp_path)
    np.savez(tmp_path / "a.npz", logits=np.zeros((2, 3, len(LLAMA))), targets=[ids, ids])
    (tmp_path / "text").write_text("a a a a a a")
    source = open_scores(tmp_path / "a.npz", tokenizer=tmp_path)
    assert evaluate(source, text=tmp_path / "text").sequences["n_bytes"].tolist() == [5, 6]
    assert evaluate(source).sequences["n_bytes"].tolist() == [5, 5]


def word_piece(path):
    vocab = {"[UNK]": 0, "[CLS]": 1, "un": 2, "##do": 3, "it": 4, ",": 5}
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    tokenizer.add_special_tokens(["[UNK]", "[CLS]"])
    tokenizer.save(str(path / "tokenizer.json"))
    return tokenizer


def test_tokenizer_that_drops_white_space_needs_the_text(command, text, tmp_path):
    tokenizer = word_piece(tmp_path)
    texts = ["undo  it, it", "it\tundo"]
    ids = [1, *tokenizer.encode(texts[0]).ids, 1, *tokenizer.encode(texts[1]).ids]
    np.savez(tmp_path / "a.npz", logits=np.zeros((len(ids), 6)), input_ids=ids, cu_seqlens=[0, 6, len(ids)])
    text.write_text("\n".join(texts), "utf-8")
    words = "4 of 19 bytes are white space in no token: the model does not have to predict it"
    with pytest.warns(UserWarning, match=words):
        result = evaluate(open_scores(tmp_path / "a.npz", tokenizer=tmp_path), shift=True, text=text)
    assert result.sequences["n_bytes"].tolist() == [*map(len, texts)]
    assert result.figures["n_bytes_without_token"] == sum(c.isspace() for line in texts for c in line)
    argv = "score", tmp_path / "a.npz", "--shift", "--tokenizer", tmp_path
    assert words in command(*argv, "--text", text)[2]
    assert_refused(command(*argv), "drops the white space between tokens", "--text")
    with pytest.raises(ValueError, match="drops the white space"):
        evaluate(formats.blocks([(np.zeros((1, 6)), [1])], tokenizer=tmp_path))


@pytest.mark.filterwarnings("ignore:.*white space in no token")
def test_tokenizer_with_a_text_that_got_more_blanks_refuses_an_old_state(text, tmp_path):
    ids = word_piece(tmp_path).encode("undo it").ids
    np.savez(tmp_path / "a.npz", logits=np.zeros((len(ids), 6)), targets=ids)
    source, options = open_scores(tmp_path / "a.npz", tokenizer=tmp_path), {"text": text, "state": tmp_path / "state"}
    text.write_text("undo it")
    first = evaluate(source, **options)
    text.write_text("undo   it")
    with fails(ValueError, "state: contains the result of", "a.npz", "changed"):
        evaluate(source, **options)
    text.write_text("undo it")
    assert evaluate(source, **options) == first


@pytest.mark.parametrize("shift", [True, False])
def test_tokenizer_tells_padding_that_is_scored(shift, command, tmp_path, monkeypatch):
    monkeypatch.setattr(token_bytes, "_PIECE", 7)
    end = BPE.token_to_id("<|endoftext|>")
    texts = [np.append(ids, end) for ids in IDS]
    width = max(map(len, texts))
    ids = np.array([np.append(one, np.full(width - len(one), end)) for one in texts])
    logits = np.zeros((*ids.shape, 512), np.float16)
    padding = sum(width - len(one) for one in texts)
    options = {"shift": shift, "tokenizer": MODEL}
    is_text = np.arange(width) < np.array([*map(len, texts)])[:, None]
    masks = {"input_ids": ids, "attention_mask": is_text} if shift else {"targets": np.where(is_text, ids, -100)}
    np.savez(tmp_path / "a.npz", logits=logits, **{"input_ids" if shift else "targets": ids})
    np.savez(tmp_path / "b.npz", logits=logits, **masks)
    words = f"a.npz: {padding} of {ids.size - len(ids) * shift} scored tokens repeat the special token {end} before"
    with pytest.warns(UserWarning, match=words):
        result = evaluate(open_scores(tmp_path / "a.npz", **options))
    assert result.figures["padding"] == {"file": str(tmp_path / "a.npz"), "token": end, "count": padding}
    shift_option = "--shift" if shift else "--no-shift"
    assert words in command("score", tmp_path / "a.npz", "--tokenizer", MODEL, shift_option)[2]
    assert evaluate(open_scores(tmp_path / "b.npz", **options)).figures["padding"] is None
    segments = np.repeat(np.arange(len(ids)), width)
    flat = [(logits.reshape(-1, 512)[i : i + 9], ids.reshape(-1)[i : i + 9], None, segments[i : i + 9])
            for i in range(0, ids.size, 9)]  # fmt: skip
    batches = [(logits[:2], ids[:2]), (logits[2:], ids[2:])]
    for made in (batches, flat) if shift else (batches,):
        with pytest.warns(UserWarning, match=f"^{words.removeprefix('a.npz: ')}"):
            evaluate(formats.blocks(made, **options))


def test_tokenizer_does_not_come_with_lengths_or_responses(command, tmp_path):
    source = batch(tmp_path)["paths"]
    refused = command("score", source, "--shift", "--tokenizer", MODEL, "--n-bytes", 5)
    assert_refused(refused, "--tokenizer and --n-bytes cannot be given together")
    responses = TESTS / "data" / "vllm.json"
    assert_refused(
        command("score", responses, "--tokenizer", MODEL), "--tokenizer is for scores; ", "vllm.json has responses"
    )
    np.savez(tmp_path / "soft.npz", probs=np.full((2, 512), 1 / 512), targets=np.full((2, 512), 1 / 512))
    assert_refused(command("score", tmp_path / "soft.npz", "--tokenizer", MODEL), "soft.npz: targets are distributions")
    with pytest.raises(ValueError, match=r"block 0: targets has shape \(2, 512\); it must be \(2,\), class ids"):
        evaluate(formats.blocks([(np.zeros((2, 512)), np.full((2, 512), 1 / 512))], tokenizer=MODEL))
    assert_refused(command("score", source, "--tokenizer", source), f"{source}: ")
    assert_refused(command("score", source, "--tokenizer", tmp_path / "none"), "none: cannot be read")
    changed(tmp_path, lambda said: None)
    state = tmp_path / "tokenizer.json"
    assert_refused(
        command("score", source, "--shift", "--tokenizer", tmp_path, "--state", state), state, "would replace"
    )


def test_an_output_of_blocks_does_not_replace_the_tokenizer(tmp_path):
    changed(tmp_path, lambda said: None)
    for path in tmp_path / "tokenizer.json", tmp_path / "tokenizer_config.json":
        path.touch()
        before = path.read_bytes()
        source = formats.blocks([(np.zeros((2, 512)), [5, 6])], tokenizer=tmp_path)
        with pytest.raises(ValueError, match="would replace"):
            evaluate(source, sinks=[sinks.HtmlPage(path)])
        assert path.read_bytes() == before


def test_tokenizer_refuses_unknown_tokens_that_are_scored(command, text, tmp_path):
    word_piece(tmp_path)
    text.write_text("it it")
    argv = "score", tmp_path / "a.npz", "--shift", "--tokenizer", tmp_path, "--text", text
    np.savez(tmp_path / "a.npz", logits=np.zeros((3, 6)), input_ids=[4, 0, 4])
    assert_refused(command(*argv), "a.npz: targets[1] is 0; it must be an id whose text", "mask or ignore")


# -- the text that is not that of the ids ------------------------------------------------------------------------------

BAD_TEXTS = {
    "truncated": (b"\n".join(text.encode() for text in TEXTS)[:-9], "it ends before them"),
    "of more": ("\n".join([*TEXTS, "and more"]).encode(), "continues with b'and more' after the last token"),
    "normalized": ("\n".join(TEXTS).replace("ï", "i\u0308").encode(), "NFC"),
    "with a BOM": ("\ufeff".encode() + "\n".join(TEXTS).encode(), "byte order mark"),
    "in UTF-16": ("\n".join(TEXTS).encode("utf-16-le"), "byte 1: line 1"),
    "with surrogates": ("\n".join([TEXTS[0], "\ud83d\ude42", *TEXTS[2:]]).encode("utf-8", "surrogatepass"), "byte 9"),
    "in another order": ("\n".join(TEXTS[::-1]).encode(), "byte 0: line 1"),
    "empty": (b"", "ends"),
    "lower case": ("\n".join(TEXTS).lower().encode(), "lower case"),
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_tokenizer_refuses_a_text_that_ids_do_not_write(name, command, text, tmp_path):
    data, words = BAD_TEXTS[name]
    text.write_bytes(data)
    outputs = {"--per-token": "tokens.csv", "--per-sequence": "texts.csv", "--html": "page.html", "--state": "state"}
    argv = ["score", batch(tmp_path)["paths"], "--shift", "--tokenizer", MODEL, "--text", text]
    for option, out in outputs.items():
        assert_refused(command(*argv, option, tmp_path / out), text, words)
        assert not (tmp_path / out).exists()


def test_tokenizer_says_that_next_tokens_lack_the_first_of_a_text(command, text, tmp_path):
    np.savez(tmp_path / "a.npz", logits=LOGITS[0][:-1], targets=IDS[0][1:])
    refused = command("score", tmp_path / "a.npz", "--tokenizer", MODEL, "--text", text)
    assert_refused(refused, "byte 0", "targets that are already the next tokens lack the first token of each text")


def test_tokenizer_refuses_ids_that_it_lacks(command, text, tmp_path):
    """Those that are scored, and with a text all of them."""
    argv = "score", tmp_path / "a.npz", "--shift", "--tokenizer", MODEL
    for ids, arguments in ([5, 600, 5], argv), ([600, 5, 5], (*argv, "--text", text)):
        np.savez(tmp_path / "a.npz", logits=np.zeros((3, 700)), input_ids=ids)
        assert_refused(command(*arguments), "a.npz: ", "targets[0] = 600 is out of range [0, 512), the ids of", MODEL)
    assert evaluate(open_scores(tmp_path / "a.npz", tokenizer=MODEL), shift=True).n_bytes == 2 * len(BPE.id_to_token(5))


def test_tokenizer_of_another_version_writes_another_text(command, text, tmp_path):
    def swap(said):
        vocabulary = said["model"]["vocab"]
        vocabulary["a"], vocabulary["e"] = vocabulary["e"], vocabulary["a"]

    argv = "score", batch(tmp_path)["paths"], "--shift", "--tokenizer", changed(tmp_path, swap), "--text", text
    assert_refused(command(*argv), text, "byte 92: line 2 continues with", "another text, tokenizer or version")


def test_tokenizer_takes_lines_that_end_in_crlf_between_texts(text, tmp_path):
    text.write_bytes("\r\n".join(TEXTS).encode())
    assert_expected(evaluate(open_scores(**batch(tmp_path), tokenizer=MODEL), text=text))
