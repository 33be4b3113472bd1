"""Networks of the ``transformers`` package, built from small configurations with random weights.

Each factory returns (module, inputs, layers that make the output). Encoders and decoders that take several inputs are
wrapped, so that their ``forward`` takes tensors by position and returns tensors.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import nn

Built = tuple[nn.Module, tuple[torch.Tensor, ...], list[nn.Module]]
VOCABULARY, TOKENS, BATCH = 96, 12, 2


class Positional(nn.Module):
    """Calls a transformers model with the names its ``forward`` wants and returns one of its results."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], result: str, **options: Any) -> None:
        super().__init__()
        self.model, self.names, self.result, self.options = model, names, result, options

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return getattr(self.model(**dict(zip(self.names, inputs)), **self.options), self.result)


def _tokens(length: int = TOKENS) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (BATCH, length))


def _pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(BATCH, 3, size, size)


def _decoder(config: str, model: str, **more: Any) -> Callable[[], Built]:
    def factory() -> Built:
        import transformers

        settings = getattr(transformers, config)(
            vocab_size=VOCABULARY, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, use_cache=False, tie_word_embeddings=False, **more,
        )  # fmt: skip
        network = getattr(transformers, model)(settings)
        return Positional(network, ("input_ids",), "logits", use_cache=False), (_tokens(),), [network.lm_head]

    return factory


def _bert() -> Built:
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCABULARY, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160,
        max_position_embeddings=64, num_labels=5,
    )  # fmt: skip
    network = transformers.BertForSequenceClassification(config)
    inputs = (_tokens(), torch.ones(BATCH, TOKENS, dtype=torch.long))
    return Positional(network, ("input_ids", "attention_mask"), "logits"), inputs, [network.classifier]


def _vit() -> Built:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=160, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    network = transformers.ViTForImageClassification(config)
    return Positional(network, ("pixel_values",), "logits"), (_pixels(),), [network.classifier]


def _swin() -> Built:
    import transformers

    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
    )
    network = transformers.SwinForImageClassification(config)
    return Positional(network, ("pixel_values",), "logits"), (_pixels(),), [network.classifier]


def _clip() -> Built:
    import transformers

    text = dict(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=32, eos_token_id=2, bos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=64, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    network = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=48))
    inputs = (_tokens(), _pixels())
    # the shared embedding is summed over in the product of both sides: no layer makes the output
    return Positional(network, ("input_ids", "pixel_values"), "logits_per_image"), inputs, []


def _whisper() -> Built:
    import transformers

    config = transformers.WhisperConfig(
        vocab_size=VOCABULARY, d_model=64, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=160, decoder_ffn_dim=160, num_mel_bins=16, max_source_positions=32,
        max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        use_cache=False,
    )  # fmt: skip
    network = transformers.WhisperForConditionalGeneration(config)
    wrapped = Positional(network, ("input_features", "decoder_input_ids"), "logits", use_cache=False)
    return wrapped, (torch.randn(BATCH, 16, 64), _tokens()), [network.proj_out]


def _t5() -> Built:
    import transformers

    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=160, num_layers=2, num_heads=4, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    network = transformers.T5ForConditionalGeneration(config)
    wrapped = Positional(network, ("input_ids", "decoder_input_ids"), "logits", use_cache=False)
    return wrapped, (_tokens(), _tokens(8)), [network.lm_head]


#: Name -> (class, factory).
NETWORKS: dict[str, tuple[str, Callable[[], Built]]] = {
    "llama": ("LlamaForCausalLM", _decoder("LlamaConfig", "LlamaForCausalLM")),
    "qwen2": ("Qwen2ForCausalLM", _decoder("Qwen2Config", "Qwen2ForCausalLM")),
    "qwen3": ("Qwen3ForCausalLM", _decoder("Qwen3Config", "Qwen3ForCausalLM", head_dim=16)),
    "bert": ("BertForSequenceClassification", _bert),
    "vit": ("ViTForImageClassification", _vit),
    "swin": ("SwinForImageClassification", _swin),
    "clip": ("CLIPModel", _clip),
    "whisper": ("WhisperForConditionalGeneration", _whisper),
    "t5": ("T5ForConditionalGeneration", _t5),
}
