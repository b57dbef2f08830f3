"""Complete models are loaded, incomplete ones are refused."""

import json

import pytest
import torch
from gguf import GGUFWriter
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoTokenizer

from hf_distill import convert_gguf
from hf_distill.loading import load_config, load_pretrained
from tests.conftest import make_model


def test_a_whole_model(tmp_path):
    model = make_model("bert", "classification")
    model.train().save_pretrained(tmp_path)
    loaded = load_pretrained(AutoModelForSequenceClassification, tmp_path, dtype=torch.float32)
    assert (type(loaded), loaded.training, loaded.dtype) == (type(model), False, torch.float32)
    assert all(torch.equal(loaded.state_dict()[name], weight) for name, weight in model.state_dict().items())


def test_tied_weights_are_not_missing(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    load_pretrained(AutoModelForMaskedLM, tmp_path)


def test_missing_weights(tmp_path):
    make_model("bert", "mlm").save_pretrained(tmp_path)
    message = r"no weights for .*classifier\.bias, classifier\.weight, so they would be random"
    with pytest.raises(ValueError, match=message):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_only_safetensors(tmp_path):
    model = make_model("bert", "classification")
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_code_of_the_model_is_not_run(tmp_path, monkeypatch):
    """Code of a model is never run, and the user is not asked about it."""
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("it asks"))
    make_model("bert", "classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoModelForSequenceClassification": "own.Own", "AutoConfig": "own.C"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "own.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_config(tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        load_pretrained(AutoModelForSequenceClassification, tmp_path)


def test_no_model(tmp_path):
    with pytest.raises(ValueError, match="neither as a local folder nor on the Hub"):
        load_config(tmp_path)


NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"}
NAMES |= {"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"}
NAMES |= {"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
"""Names of a Llama's weights in GGUF."""


def write_gguf(file, model, architecture="llama"):
    """A tiny Llama as llama.cpp writes it, with 64 tokens: 4 special ones, ASCII from `!`, and `AB`."""
    config, weights = model.config, model.state_dict()
    writer = GGUFWriter(file, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(64)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<s>", "</s>", "<pad>", *map(chr, range(33, 92)), "AB"])
    writer.add_token_types([3] * 4 + [1] * 60)
    writer.add_token_merges(["A B"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(3)
    tensors = {"token_embd": weights["model.embed_tokens.weight"], "output_norm": weights["model.norm.weight"]}
    tensors["output"] = weights["lm_head.weight"]
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for name, own in NAMES.items():
            weight = weights[f"model.layers.{layer}.{name}.weight"]
            if own in heads:  # llama.cpp rotates neighbouring numbers, transformers the two halves of a head
                weight = weight.reshape(heads[own], 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
            tensors[f"blk.{layer}.{own}"] = weight
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_gguf(tmp_path):
    model = make_model("llama", "causal", num_layers=2, vocab_size=64)
    write_gguf(tmp_path / "tiny.gguf", model)
    folder = convert_gguf(tmp_path / "tiny.gguf", tmp_path / "plain")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer("ABC")["input_ids"] == [63, 38]
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert not hasattr(plain.config, "quantization_config")
    tokens = torch.arange(4, 20).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(plain(tokens).logits, model(tokens).logits, atol=1e-6)


def test_bad_gguf(tmp_path):
    file = tmp_path / "tiny.gguf"
    with pytest.raises(ValueError, match="File not found"):
        convert_gguf(file, tmp_path / "plain")
    write_gguf(file, make_model("llama", "causal", num_layers=2, vocab_size=64), architecture="unheard-of")
    with pytest.raises(
        ValueError, match=r"cannot read .*tiny\.gguf: .*unheard-of.* is not supported.* safetensors instead"
    ):
        convert_gguf(file, tmp_path / "plain")
    assert not (tmp_path / "plain").exists()
    with pytest.raises(ValueError, match="exists: give a new folder"):
        convert_gguf(file, tmp_path)
    file.write_text("not GGUF at all, but text that is long enough")
    with pytest.raises(ValueError, match=r"cannot read .*tiny\.gguf"):
        convert_gguf(file, tmp_path / "plain")
    with pytest.raises(ValueError, match=r"is a GGUF file: convert it with hf_distill\.convert_gguf\("):
        load_config(file)
