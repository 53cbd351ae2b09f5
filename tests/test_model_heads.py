"""Heads in folders of models: config.json says how logits are made, as transformers does; what is not known is refused.

Models of random weights are made by transformers, which also computes the logits that losses are compared with.
"""

import json
import os

import numpy as np
import pytest
import reference
import safetensors.numpy
from commands import assert_refused

import tokenloss
from tokenloss import compare_files, evaluate
from tokenloss.formats import open_hidden_states

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
        found = model(input_ids=ids, output_hidden_states=True, **inputs)
    states = found.decoder_hidden_states if inputs else found.hidden_states
    return states[-1].numpy(), found.logits.double().numpy(), ids.roll(-1, 1).numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_lm_head_of_a_model_that_transformers_saved(family, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers are not installed")
    model = make_model(family, torch, transformers)
    model.save_pretrained(tmp_path / "model")
    hidden, logits, targets = as_transformers(model, torch)
    np.savez(tmp_path / "states.npz", hidden_states=hidden, targets=targets)
    losses = reference.cross_entropy(logits, targets, reduction="none")
    expected = float(np.mean(losses))
    assert np.std(losses) > 0.3  # of weights that matter
    found = evaluate(tmp_path / "states.npz", lm_head=tmp_path / "model").figures
    assert found["loss"] == pytest.approx(expected, rel=2e-6)
    scale, cap = FAMILIES[family][2:]
    assert found["head"]["logit_scale"] == pytest.approx(scale or 1)
    assert (found["head"]["softcap"], found["head"]["has_bias"]) == (cap, family in WITH_BIAS)
    assert found["norm_seems_missing"] is False
