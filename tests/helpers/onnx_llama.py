"""A Llama as an ONNX model, with the inputs and the output that Optimum's exports have."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file


def export(source, folder):
    """Write model.onnx, computed in float32, and tokenizer.json of a folder of transformers.

    The mask is an input that nothing reads: padding on the right comes after all tokens that count.
    """
    source, folder = Path(source), Path(folder)
    config = json.loads((source / "config.json").read_text())
    weights = {name: array.astype(np.float32) for name, array in load_file(source / "model.safetensors").items()}
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(_model(config, weights), folder / "model.onnx")
    shutil.copy(source / "tokenizer.json", folder)


def _model(config, weights):
    nodes, constants, pasts, presents = [], {}, [], []
    heads, kv_heads, size = (config[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))

    def op(kind, *inputs, more=(), **attributes):
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name, *more], **attributes))
        return name

    def weight(name, array):
        constants[name] = array
        return name

    def linear(x, name):
        return op("MatMul", x, weight(name, np.ascontiguousarray(weights[f"{name}.weight"].T)))

    def norm(x, name):
        scale = weight(name, weights[f"{name}.weight"])
        return op("RMSNormalization", x, scale, epsilon=config["rms_norm_eps"])

    angles = np.outer(
        np.arange(config["max_position_embeddings"]),
        config["rope_parameters"]["rope_theta"] ** -(np.arange(0, size, 2) / size),
    )
    turns = weight("cos", np.cos(angles).astype(np.float32)), weight("sin", np.sin(angles).astype(np.float32))
    embedding = weights["model.embed_tokens.weight"]
    x = op("Gather", weight("embedding", embedding), "input_ids")
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        y = norm(x, f"{layer}.input_layernorm")
        q, k, v = (linear(y, f"{layer}.self_attn.{name}_proj") for name in "qkv")
        q = op("RotaryEmbedding", q, *turns, "position_ids", num_heads=heads)
        k = op("RotaryEmbedding", k, *turns, "position_ids", num_heads=kv_heads)
        past, present = (
            [f"{name}.{number}.{kind}" for kind in ("key", "value")] for name in ("past_key_values", "present")
        )
        y = op("Attention", q, k, v, "", *past, more=present, is_causal=1, q_num_heads=heads, kv_num_heads=kv_heads)
        pasts, presents = pasts + past, presents + present
        x = op("Add", x, linear(y, f"{layer}.self_attn.o_proj"))
        y = norm(x, f"{layer}.post_attention_layernorm")
        gate = linear(y, f"{layer}.mlp.gate_proj")
        gate = op("Mul", gate, op("Sigmoid", gate))
        x = op("Add", x, linear(op("Mul", gate, linear(y, f"{layer}.mlp.up_proj")), f"{layer}.mlp.down_proj"))
    head = weight("head", np.ascontiguousarray(embedding.T))
    nodes.append(helper.make_node("MatMul", [norm(x, "model.norm"), head], ["logits"]))

    names = ("input_ids", "attention_mask", "position_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["texts", "tokens"]) for name in names]
    shape = ["texts", kv_heads, "past", size]
    inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in pasts]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["texts", "tokens", len(embedding)])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in presents]
    initializers = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "llama", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
