"""Heads in folders of models: config.json says how logits are made, as transformers does; what is not known is refused.

Models of random weights are made by transformers, which also computes the logits that losses are compared with.
"""

import json

import numpy as np
import pytest
import reference
import safetensors.numpy
from commands import assert_refused

import tokenloss
from tokenloss import compare_files, evaluate
from tokenloss._evaluation import rows as shard_rows
from tokenloss.formats import lm_head, open_hidden_states

pytestmark = pytest.mark.thread_unsafe(reason="a command prints to the stdout of its process")
V, D = 61, 32
SIZES = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "n_embd": D, "n_layer": 2, "n_head": 4,
    "rotary_dim": 4, "n_positions": 64, "ffn_dim": 48, "word_embed_proj_dim": D, "d_model": D, "d_ff": 48, "d_kv": 8,
    "num_layers": 2, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 1,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "n_routed_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "n_group": 1,
    "topk_group": 1, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "first_k_dense_replace": 1,
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_d_ssm": 64, "state_size": 8,
}  # fmt: skip
# by model type: the class of the model, what its config says, and how its logits are scaled and capped
FAMILIES = {
    "llama": ("LlamaForCausalLM", {}, None, None),
    "llama tied": ("LlamaForCausalLM", {"tie_word_embeddings": True}, None, None),
    "mistral": ("MistralForCausalLM", {}, None, None),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}, None, None),
    "qwen3": ("Qwen3ForCausalLM", {}, None, None),
    "phi": ("PhiForCausalLM", {}, None, None),  # has a bias
    "phi3": ("Phi3ForCausalLM", {}, None, None),
    "olmo": ("OlmoForCausalLM", {}, None, None),
    "olmo2": ("Olmo2ForCausalLM", {}, None, None),
    "nemotron": ("NemotronForCausalLM", {}, None, None),
    "gpt2": ("GPT2LMHeadModel", {}, None, None),
    "gpt_neox": ("GPTNeoXForCausalLM", {}, None, None),
    "gptj": ("GPTJForCausalLM", {}, None, None),  # has a bias
    "opt": ("OPTForCausalLM", {}, None, None),
    "opt projected": ("OPTForCausalLM", {"word_embed_proj_dim": 16}, None, None),
    "bloom": ("BloomForCausalLM", {}, None, None),
    "falcon_h1": ("FalconH1ForCausalLM", {"lm_head_multiplier": 0.3}, 0.3, None),
    "gemma": ("GemmaForCausalLM", {}, None, None),
    "gemma2": ("Gemma2ForCausalLM", {"final_logit_softcapping": 3.0}, None, 3.0),
    "gemma3_text": ("Gemma3ForCausalLM", {"final_logit_softcapping": 2.5}, None, 2.5),
    "gemma3": ("Gemma3ForConditionalGeneration", {}, None, None),
    "cohere": ("CohereForCausalLM", {"logit_scale": 0.3}, 0.3, None),
    "cohere2": ("Cohere2ForCausalLM", {"logit_scale": 0.4, "tie_word_embeddings": False}, 0.4, None),
    "granite": ("GraniteForCausalLM", {"logits_scaling": 4.0}, 0.25, None),
    "hyperclovax": ("HyperCLOVAXForCausalLM", {"logits_scaling": 0.5}, 0.5, None),  # which multiplies
    "minicpm3": ("MiniCPM3ForCausalLM", {"dim_model_base": 8, "num_key_value_heads": 4}, 0.25, None),
    "nanochat": ("NanoChatForCausalLM", {"final_logit_softcapping": 4.0}, None, 4.0),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {"num_key_value_heads": 4}, None, None),
    "mamba": ("MambaForCausalLM", {}, None, None),
    "t5": ("T5ForConditionalGeneration", {}, D**-0.5, None),
    "t5 v1.1": ("T5ForConditionalGeneration", {"tie_word_embeddings": False}, None, None),
    "bart": ("BartForConditionalGeneration", {}, None, None),  # has a bias, as the next
    "marian": ("MarianMTModel", {}, None, None),
}
WITH_BIAS = {"phi", "gptj", "bart", "marian"}
# which are read as Llama is, by other names
LIKE_LLAMA = {"mistral", "qwen2", "qwen3", "phi3", "olmo", "olmo2", "nemotron", "gpt_neox", "opt", "bloom",
              "deepseek_v3"}  # fmt: skip


def make_model(family, torch, transformers):
    """A model of random weights."""
    name, said, *_ = FAMILIES[family]
    model_class = getattr(transformers, name, None)
    if model_class is None:
        pytest.skip(f"transformers {transformers.__version__} has no {name}")
    config_class = model_class.config_class
    torch.manual_seed(0)
    if family == "gemma3":
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "image_size": 28, "patch_size": 14}  # fmt: skip
        config = config_class(text_config=said_of(SIZES, transformers.Gemma3TextConfig), vision_config=vision)
    else:
        config = config_class(**(said_of(SIZES, config_class) | said))
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if parameter_name.endswith(("bias", "final_logits_bias")):
                parameter.copy_(torch.randn(parameter.shape))
            elif parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape) * 0.3)
            elif "norm" in parameter_name:
                parameter.add_(torch.rand(parameter.shape))
    return model


def said_of(sizes, config_class):
    """The sizes that a config has; those with a value of their own are added by the family."""
    known = config_class().to_dict().keys() | getattr(config_class, "attribute_map", {}).keys()
    return {name: size for name, size in sizes.items() if name in known}


def as_transformers(model, torch):
    """Final hidden states and logits of a model, in float64, and targets."""
    ids = torch.tensor(np.random.default_rng(7).integers(3, V, (2, 12)))
    inputs = {"decoder_input_ids": ids.flip(0)} if model.config.is_encoder_decoder else {}
    with torch.inference_mode():
        result = model(input_ids=ids, output_hidden_states=True, **inputs)
    states = result.decoder_hidden_states if inputs else result.hidden_states
    return states[-1].numpy(), result.logits.double().numpy(), ids.roll(-1, 1).numpy()


@pytest.mark.filterwarnings("ignore::FutureWarning")  # old releases of transformers call what torch has deprecated
@pytest.mark.parametrize(
    "family", [pytest.param(one, marks=[pytest.mark.slow] if one in LIKE_LLAMA else []) for one in FAMILIES]
)
def test_lm_head_of_a_model_that_transformers_saved(family, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = make_model(family, torch, transformers)
    model.save_pretrained(tmp_path / "model")
    hidden, logits, targets = as_transformers(model, torch)
    np.savez(tmp_path / "states.npz", hidden_states=hidden, targets=targets)
    losses = reference.cross_entropy(logits, targets, reduction="none")
    expected = float(np.mean(losses))
    assert np.std(losses) > 0.3  # of weights that matter
    result = evaluate(open_hidden_states(tmp_path / "states.npz", tmp_path / "model")).figures
    assert result["loss"] == pytest.approx(expected, rel=2e-6)
    scale, cap = FAMILIES[family][2:]
    assert result["head"]["logit_scale"] == pytest.approx(scale or 1)
    assert (result["head"]["softcap"], result["head"]["has_bias"]) == (cap, family in WITH_BIAS)
    assert result["norm_seems_missing"] is False


def test_config_keys_are_those_that_transformers_needs():
    """Where a key is missing, transformers takes its default: a config must have it if that changes logits."""
    transformers = pytest.importorskip("transformers")
    types = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    known = {(key, kind) for key, kind in lm_head._EFFECTS if kind in types}
    assert len(known) > 10
    for key, kind in known:
        config = types[kind]()  # may have attributes that are not saved
        parts = [getattr(config, name, None) for name in lm_head._TEXT_CONFIGS]
        defaults = {getattr(part, key, None) for part in (config, *parts)} - {None}
        is_neutral = all(default == (0 if "cap" in key else 1) for default in defaults)
        if lm_head._EFFECTS[key, kind] != "nothing":
            assert ((key, kind) in lm_head._NEEDED) != is_neutral, (key, kind)


# -- folders of models that are made by hand ---------------------------------------------------------------------------

RNG = np.random.default_rng(30)
N = 40
STATES = RNG.normal(size=(N, D))
HIDDEN = (STATES / np.sqrt(np.square(STATES).mean(-1, keepdims=True))).astype(np.float32)
WEIGHT, OTHER = RNG.normal(size=(2, V, D)).astype(np.float32)
BIAS = RNG.normal(size=V).astype(np.float32)
TARGETS = RNG.integers(V, size=N)
LOGITS = np.asarray(reference.wide(HIDDEN) @ reference.wide(WEIGHT).T, np.float64)
EMBEDDING, HEAD = {"model.embed_tokens.weight": WEIGHT}, {"lm_head.weight": WEIGHT}


def save_model(path, tensors, config=None, shards=0):
    """A folder of a model: its weights, perhaps each in a shard of its own, and its config."""
    path.mkdir(exist_ok=True)
    if shards:
        names = {name: f"model-{number:05d}-of-00009.safetensors" for number, name in enumerate(tensors)}
        for name, file in names.items():
            safetensors.numpy.save_file({name: tensors[name]}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        safetensors.numpy.save_file(tensors, path / "model.safetensors")
    if config is not None:
        (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture
def states(tmp_path):
    np.savez(tmp_path / "states.npz", hidden_states=HIDDEN, targets=TARGETS)
    return tmp_path / "states.npz"


def loss_of(logits=LOGITS, **transform):
    return float(reference.cross_entropy(logits, TARGETS, **transform))


def llama(**config):
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": V, **config}


@pytest.mark.parametrize(
    ("config", "transform"),
    [
        (llama(), {}),
        (llama(logit_scale=1.0, logits_scaling=1, final_logit_softcapping=None, lm_head_multiplier=1), {}),
        (llama(attn_logit_softcapping=50.0, embedding_multiplier=12, output_router_logits=True, use_mup=False), {}),
        ({"model_type": "cohere", "logit_scale": 0.25}, {"logit_scale": 0.25}),
        ({"model_type": "cohere", "logit_scale": 0.5, "text_config": {"logit_scale": 0.5}}, {"logit_scale": 0.5}),
        ({"model_type": "gemma2", "final_logit_softcapping": 3}, {"softcap": 3.0}),
        ({"model_type": "minicpm", "dim_model_base": 8, "hidden_size": D, "scale_emb": 12}, {"logit_scale": 0.25}),
        ({"model_type": "granite", "logits_scaling": 8.0}, {"logit_scale": 0.125}),
        ({"model_type": "hyperclovax", "logits_scaling": 0.125}, {"logit_scale": 0.125}),
        (
            {"model_type": "muse_spark", "text_config": {"output_multiplier": 0.5, "final_logit_softcapping": 2}},
            {"logit_scale": 0.5, "softcap": 2.0},
        ),
        ({"model_type": "t5", "d_model": 16}, {"logit_scale": 0.25}),
        ({"model_type": "t5", "d_model": 16, "tie_word_embeddings": False}, {}),
        ({"model_type": "t5", "d_model": 16, "scale_decoder_outputs": False, "tie_word_embeddings": True}, {}),
        ({"model_type": "paligemma", "text_config": {"vocab_size": V + 3}, "vocab_size": V}, {}),
    ],
)
@pytest.mark.parametrize("shards", [0, 1])
def test_lm_head_config_scales_and_caps(shards, config, transform, states, tmp_path, score_json):
    model = save_model(tmp_path / "model", HEAD, config, shards)
    result = score_json(states, "--lm-head", model)
    assert result["loss"] == pytest.approx(loss_of(**transform), abs=1e-6)
    taken = {"logit_scale": 1.0, "softcap": None} | transform
    assert {name: result["head"][name] for name in taken} == taken
    assert ("(config.json)" in result["head"]["note"]) == bool(transform)
    opened = open_hidden_states(states, sorted(model.glob("model*.safetensors"))[0]).file.lm_head
    assert (opened.logit_scale, opened.softcap) == (taken["logit_scale"], taken["softcap"])


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        (llama(logit_scale=0.25), "--logit-scale", "logit_scale is 0.25, whose effect on logits of models of type"),
        (llama(final_logit_softcapping=30.0), "--softcap", "final_logit_softcapping is 30.0"),
        (llama(new_logit_softcap=30.0), "--softcap", "new_logit_softcap is 30.0"),
        (llama(logits_scaling=8), "--logit-scale", "logits_scaling is 8"),
        (llama(lm_head_multiplier=0.04), "--logit-scale", "lm_head_multiplier is 0.04"),
        (llama(output_multiplier_scale=0.5), "--logit-scale", "output_multiplier_scale is 0.5"),
        (llama(mup_width_scale=0.1), "--logit-scale", "mup_width_scale is 0.1"),
        (llama(use_mup=True), "--logit-scale", "use_mup is True"),
        (llama(text_config={"logit_scale": 3}), "--logit-scale", "logit_scale is 3"),
        ({"model_type": "gemma3", "text_config": {"final_logit_softcapping": 2}}, "--softcap", "softcapping is 2"),
        ({"model_type": "mpt", "logit_scale": "inv_sqrt_d"}, "--logit-scale", "logit_scale is 'inv_sqrt_d'"),
        ({"logit_scale": 3}, "--logit-scale", "models of type ''"),
        ({"model_type": "cohere", "logit_scale": -1}, "--logit-scale", "logit_scale is -1"),
        ({"model_type": "cohere", "logit_scale": 10**400}, "--logit-scale", "logit_scale is 1000"),
        ({"model_type": "cohere", "logit_scale": 2, "text_config": {"logit_scale": 3}}, "--logit-scale", "is 3"),
        ({"model_type": "cohere"}, "--logit-scale", "logit_scale is missing, but models of type 'cohere' have"),
        ({"model_type": "gemma2"}, "--softcap", "final_logit_softcapping is missing"),
        (
            {"model_type": "paligemma", "text_config": {"model_type": "gemma2"}},
            "--softcap",
            "final_logit_softcapping is missing, but models of type 'gemma2' have",
        ),
        ({"model_type": "minicpm", "dim_model_base": 8}, None, "hidden_size is missing or is not a positive number"),
    ],
)
def test_lm_head_config_that_is_not_understood(config, options, words, states, tmp_path, command, score_json):
    """Nothing is computed; with the option that is asked for, that is what holds."""
    model = save_model(tmp_path / "model", HEAD, config)
    refused = command("score", states, "--lm-head", model)
    assert_refused(refused, f"{model / 'config.json'}: ", words, f"come with {options}" if options else "")
    if options:
        result = score_json(states, "--lm-head", model, options, 2)
        transform = {"softcap": 2.0} if options == "--softcap" else {"logit_scale": 2.0}
        assert result["loss"] == pytest.approx(loss_of(**transform), abs=1e-6)


def test_logit_scale_and_softcap_come_before_those_of_the_config(states, tmp_path, command, score_json):
    config = {"model_type": "muse_glimmer", "output_multiplier": 0.5, "final_logit_softcapping": 2}
    model = save_model(tmp_path / "model", HEAD, config)
    for options, transform, note in [
        ([], {"logit_scale": 0.5, "softcap": 2.0}, "scale 0.5 (config.json), softcap 2 (config.json)"),
        (["--softcap", 0], {"logit_scale": 0.5}, "scale 0.5 (config.json), softcap 0 (given; config.json: 2)"),
        (["--softcap", 3], {"logit_scale": 0.5, "softcap": 3.0}, "softcap 3 (given; config.json: 2)"),
        (["--logit-scale", 1], {"softcap": 2.0}, "scale 1 (given; config.json: 0.5), softcap 2 (config.json)"),
        (["--logit-scale", 3, "--softcap", 4], {"logit_scale": 3.0, "softcap": 4.0}, "scale 3 (given; "),
    ]:
        assert score_json(states, "--lm-head", model, *options)["loss"] == pytest.approx(loss_of(**transform), rel=1e-6)
        assert note in command("score", states, "--lm-head", model, *options)[1]
    given = {"logit_scale": 3.0, "softcap": 0}
    source = open_hidden_states(states, model, **given)
    head = source.file.lm_head
    assert (head.logit_scale, head.softcap) == (3.0, None)
    assert evaluate(source).meter.loss == pytest.approx(loss_of(logit_scale=3.0), rel=1e-6)


NO_HEAD = "has no head except the embedding model.embed_tokens.weight, and "
SAYS = f"{NO_HEAD}config.json has "
TIED = llama(tie_word_embeddings=True)


@pytest.mark.parametrize(
    ("tensors", "config", "words"),
    [
        (EMBEDDING, None, f"{NO_HEAD}no config.json says that this is the head"),
        (EMBEDDING, llama(), f"{SAYS}tie_word_embeddings nowhere"),
        (EMBEDDING, llama(tie_word_embeddings=False), f"{SAYS}tie_word_embeddings false"),
        (
            EMBEDDING,
            TIED | {"text_config": {"tie_word_embeddings": False}},
            f"{SAYS}tie_word_embeddings false and true",
        ),
        (EMBEDDING, TIED | {"architectures": ["LlamaForScores"]}, f"{SAYS}architectures LlamaForScores"),
        (EMBEDDING, TIED | {"architectures": "LlamaModel"}, f"{SAYS}architectures LlamaModel"),
        (EMBEDDING | {"score.weight": OTHER[:1]}, TIED, f"{NO_HEAD}it contains score.weight, the head of another task"),
        ({"score.weight": OTHER}, TIED, "has no head with a usual name"),
        (HEAD | {"lm_head.weight_scale": BIAS}, llama(), "has lm_head.weight_scale next to lm_head.weight"),
        (HEAD | {"lm_head.lora_A.weight": OTHER}, None, "has lm_head.lora_A.weight next to lm_head.weight"),
        (HEAD | {"projection_head.weight": OTHER}, None, "has projection_head.weight next to lm_head.weight"),
        (EMBEDDING | {"model.embed_tokens.scale": BIAS}, TIED, "model.embed_tokens.scale next to model.embed_tokens.w"),
        (
            HEAD | {"wte.weight": OTHER},
            TIED,
            "has lm_head.weight and a different wte.weight, though the model ties them",
        ),
        (HEAD, llama(lm_head_bias=True), "has no bias of the head, but config.json has lm_head_bias true"),
        (HEAD, llama(vocab_size=V - 1), f"lm_head.weight has {V} classes, but config.json has vocab_size {V - 1}"),
        (HEAD, {"model_type": "baichuan"}, "is of type 'baichuan', which normalizes the rows of its head"),
    ],
)
def test_lm_head_that_is_not_the_head_of_its_model(tensors, config, words, states, tmp_path, command, score_json):
    """What is taken for the head is only what the model takes; a name says more than the model does."""
    model = save_model(tmp_path / "model", tensors, config)
    path = model / "model.safetensors"
    for head in model, path:
        assert_refused(command("score", states, "--lm-head", head), f"{path}: ", words, "be given as FILE:NAME")
    name = next(name for name, tensor in tensors.items() if len(tensor) == V)
    expected = np.asarray(reference.wide(HIDDEN) @ reference.wide(tensors[name]).T, np.float64)
    result = score_json(states, "--lm-head", f"{model}:{name}")
    assert result["loss"] == pytest.approx(loss_of(expected), abs=1e-6)


def test_lm_head_beside_an_adapter_is_refused(states, tmp_path, command):
    model = save_model(tmp_path / "model", HEAD, llama())
    (model / "adapter_config.json").write_text("{}")
    words = "has adapter_config.json next to it, which may change the head", "be given as FILE:NAME"
    assert_refused(command("score", states, "--lm-head", model), *words)
    assert command("score", states, "--lm-head", f"{model}:lm_head.weight")[0] == 0


BART = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}


@pytest.mark.parametrize("config", [TIED, {"model_type": "gemma"}, {"model_type": "gpt2", "architectures": None}, BART])
@pytest.mark.parametrize("shards", [0, 1])
def test_lm_head_that_is_the_embedding(shards, config, states, tmp_path, score_json):
    tensors = EMBEDDING | {"model.norm.weight": np.ones(D, np.float32)}
    result = score_json(states, "--lm-head", save_model(tmp_path / "model", tensors, config, shards))
    assert result["loss"] == pytest.approx(loss_of(), abs=1e-6)
    assert result["head"]["weight"] == "model.embed_tokens.weight"
    both = save_model(tmp_path / "both", EMBEDDING | HEAD, config, shards)  # stored twice
    assert score_json(states, "--lm-head", both)["loss"] == result["loss"]


@pytest.mark.parametrize("name", ["lm_head.bias", "final_logits_bias", "lm_head_bias"])
@pytest.mark.parametrize("shards", [0, 1])
def test_lm_head_bias_is_added(shards, name, states, tmp_path, score_json, command):
    bias = BIAS[None] if name == "final_logits_bias" else BIAS
    config = {"model_type": "cohere", "logit_scale": 0.5, "lm_head_bias": True}
    model = save_model(tmp_path / "model", HEAD | {name: bias}, config, shards)
    for head in model, sorted(model.glob("model*.safetensors"))[0]:
        result = score_json(states, "--lm-head", head)
        assert result["loss"] == pytest.approx(loss_of(0.5 * (LOGITS + BIAS)), abs=1e-6)
        assert result["head"]["has_bias"] is True
    assert "lm_head.weight + bias" in command("score", states, "--lm-head", model)[1]
    (model / "config.json").write_text('{"model_type": "t5", "d_model": 4}')
    refused = command("score", states, "--lm-head", model)
    assert_refused(refused, f"has {name}, and hidden states are scaled", "--logit-scale")
    for config in {"model_type": "t5", "d_model": 4}, {"model_type": "minicpm", "dim_model_base": 8, "hidden_size": D}:
        (model / "config.json").write_text(json.dumps(config))
        result = score_json(states, "--lm-head", model, "--logit-scale", 0.5)  # which is of logits
        assert result["loss"] == pytest.approx(loss_of(0.5 * (LOGITS + BIAS)), abs=1e-6)


def test_config_that_cannot_be_read(states, tmp_path, command):
    model = save_model(tmp_path / "model", HEAD, llama())
    for text in ("{", "[]", "[" * 100_000, "\xff"):
        (model / "config.json").write_text(text, "latin-1")
        assert_refused(command("score", states, "--lm-head", model), f"{model / 'config.json'}: cannot be read")


# texts that are no JSON, where a reader says that, and what it must be
NO_JSON = {
    '{"a": 1,\n "é" 2}': "line 2: byte 7: Expecting ':' delimiter; it must be JSON",
    '\ufeff{"é" 2}': "line 1: byte 10: Expecting ':' delimiter; it must be JSON",
    "[" * 100_000 + "]" * 100_000: "line 1: is nested too deeply; it must have at most 100 levels",
    '{"a": ' * 200 + "1" + "}" * 200: "line 1: is nested too deeply; it must have at most 100 levels",
    '{"a":\n\n': "line 1: the text ends too early; it must be whole JSON",
    '{"a": 1, "a": 2}': "line 1: an object has the key 'a' twice; it must have it once",
    f'{{"a": {"9" * 5000}}}': "line 1: an integer has too many digits; it must have fewer",
}


@pytest.mark.parametrize("text", NO_JSON, ids=range(len(NO_JSON)))
def test_small_files_of_json_say_in_one_way_where_they_are_wrong(text, states, tmp_path, command):
    words = NO_JSON[text]
    model = save_model(tmp_path / "model", HEAD, llama(), shards=1)
    index, argv = next(model.glob("*.index.json")), ("score", states, "--lm-head", model)
    for file in model / "config.json", index:
        before = file.read_bytes()
        file.write_text(text, "utf-8")
        assert_refused(command(*argv), f"{file}: cannot be read: {words}")
        file.write_bytes(before)
    header = text.encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert_refused(command("score", tmp_path / "a.safetensors"), f"byte 8: the header is not JSON ({words})")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "r.tiktoken").write_text("YQ== 0\n")
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
    refused = command(*argv, "--tokenizer", folder)
    assert_refused(refused, f"{folder / 'tokenizer_config.json'}: cannot be read: {words}")
    if text.startswith("{"):
        (folder / "tokenizer.json").write_text(text, "utf-8")
        refused = command(*argv, "--tokenizer", folder)
        assert_refused(refused, f"{folder / 'tokenizer.json'}: cannot be read: {words}")


def test_files_of_a_head_are_not_replaced_by_an_output(states, tmp_path, command):
    model = save_model(tmp_path / "model", HEAD, llama(), shards=1)
    for file in model.iterdir():
        before = file.read_bytes()
        assert_refused(command("score", states, "--lm-head", model, "--state", file), "would replace", file.name)
        assert file.read_bytes() == before


@pytest.mark.parametrize("changed", ["config.json", "lm_head.bias", "model.norm.weight"])
def test_state_of_another_head_is_refused(changed, states, tmp_path, command, compare_json):
    """Its bias and its norm are in shards of their own."""
    arrays = {"lm_head.bias": BIAS, "model.norm.weight": np.ones_like(WEIGHT[0])}
    tensors = HEAD if changed == "config.json" else HEAD | {changed: arrays[changed]}
    model = save_model(tmp_path / "model", tensors, {"model_type": "granite", "logits_scaling": 2.0}, shards=1)
    score = "score", states, "--lm-head", model, "--state", tmp_path / "state"
    with np.load(states) as file:
        np.savez(tmp_path / "x.npz", hidden_states=file["hidden_states"][::-1])
    compare = states, tmp_path / "x.npz", "--lm-head", model, "--state", tmp_path / "compared"
    for _ in range(2):
        assert command(*score)[0] == 0
        compare_json(*compare)
    if changed == "config.json":
        (model / changed).write_text('{"model_type": "granite", "logits_scaling": 4.0}')
    else:
        names = json.loads((model / "model.safetensors.index.json").read_text())["weight_map"]
        assert names[changed] != names["lm_head.weight"]
        safetensors.numpy.save_file({changed: 2 * arrays[changed]}, model / names[changed])
    assert_refused(command(*score), "state: contains the result of", "its head changed")
    assert_refused(command("compare", *compare), "compared: contains the result of", "changed")


def test_config_that_changed_since_the_head_was_opened_is_refused(states, tmp_path):
    """The result would name the old scale, and have the numbers of the new one."""
    model = save_model(tmp_path / "model", HEAD, {"model_type": "granite", "logits_scaling": 2.0})
    source = open_hidden_states(states, model)
    (model / "config.json").write_text('{"model_type": "granite", "logits_scaling": 4.0}')
    with pytest.raises(ValueError, match="model: changed after it was opened; it must stay as it is while it is read"):
        evaluate(source)


@pytest.mark.filterwarnings("ignore:.*identical to base")
@pytest.mark.parametrize("definitions", ["exact", "llama.cpp"])
def test_compare_of_heads_with_configs(definitions, states, tmp_path, command):
    """Each model has its own transform, unless one is given, which is that of all."""
    capped = save_model(tmp_path / "capped", HEAD, {"model_type": "gemma2", "final_logit_softcapping": 3.0})
    scaled = save_model(tmp_path / "scaled", HEAD, {"model_type": "cohere", "logit_scale": 0.5})
    logits = {"capped": 3 * np.tanh(LOGITS / 3), "scaled": LOGITS / 2}
    options = {"definitions": definitions}
    of_capped, of_scaled = (open_hidden_states(states, model) for model in (capped, scaled))
    result = compare_files(of_capped, {"a": of_capped, "b": of_scaled}, **options)
    base = tokenloss.log_softmax(logits["capped"])
    expected = tokenloss.compare(base, logits["scaled"], TARGETS, **options)
    assert result["a"].mean_kl == pytest.approx(0, abs=1e-6)
    for name in ("mean_kl", "perplexity", "base_perplexity", "same_top", "rms_delta_p"):
        assert getattr(result["b"], name) == pytest.approx(getattr(expected, name), rel=1e-5)
    given = {"logit_scale": 0.5, "softcap": 0}
    of_capped, of_scaled = (open_hidden_states(states, model, **given) for model in (capped, scaled))
    same = compare_files(of_capped, {"b": of_scaled}, **options)["b"]
    assert same.mean_kl == pytest.approx(0, abs=1e-7)
    assert same.perplexity == pytest.approx(np.exp(loss_of(LOGITS / 2)), rel=1e-5)
    printed = command("compare", states, f"b={states}", "--base-lm-head", capped, "--lm-head", scaled)[1]
    assert "softcap 3 (config.json)" in printed
    assert "scale 0.5 (config.json)" in printed


@pytest.mark.parametrize("kind", ["rms", "added to 1", "layer"])
def test_norm_is_known_by_its_weight(kind, states, tmp_path):
    """After the final norm, states divided by its weight have a mean square of 1; before it, all may have the same."""
    weight, bias = RNG.normal(1, 0.3, (2, D)).astype(np.float32)
    gain = 1 + weight if kind == "added to 1" else weight
    tensors = HEAD | {"model.norm.weight": weight}
    tensors |= {"model.norm.bias": bias} if kind == "layer" else {}
    model = save_model(tmp_path / "model", tensors, llama())
    offset = bias if kind == "layer" else 0
    for scale, is_missing in (1, False), (1.5, True):  # which the spread alone does not show
        np.savez(states, hidden_states=HIDDEN * scale * gain + offset, targets=TARGETS)
        if is_missing:
            with pytest.warns(tokenloss.NormWarning):
                result = evaluate(open_hidden_states(states, model)).figures
        else:
            result = evaluate(open_hidden_states(states, model)).figures
        assert result["norm_seems_missing"] is is_missing
        assert result["head"]["norm"] == "model.norm.weight"


def test_norm_in_a_shard_that_is_not_there(states, tmp_path):
    tensors = HEAD | {"model.norm.weight": np.ones(D, np.float32)}
    model = save_model(tmp_path / "model", tensors, llama(), shards=1)
    (model / "model-00001-of-00009.safetensors").unlink()
    result = evaluate(open_hidden_states(states, model))
    assert result.meter.loss == pytest.approx(loss_of(), abs=1e-6)
    assert result.figures["head"]["norm"] is None


@pytest.mark.parametrize(("value", "found"), [(0.0, 0.0), (np.inf, np.inf), (np.nan, np.nan)])
def test_norm_of_states_that_are_not_finite(value, found):
    weight = np.zeros(D)
    weight[1:] = 2
    sample = shard_rows.root_mean_squares(np.full((20, D), value), np.ones(20, bool), 64, (weight, np.zeros(D)))
    np.testing.assert_array_equal(sample, np.full(20, found))
    assert not shard_rows.norm_seems_missing(sample, is_known=True)
