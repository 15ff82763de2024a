"""Tiny transformers models made of their configuration, with the arguments of a call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

Build = Callable[[], tuple[nn.Module, dict[str, Any]]]

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
ENCODER_DECODER = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
PICTURE = {"image_size": 32, "patch_size": 8}


def _made(kind: str, config: Any) -> nn.Module:
    import transformers

    model: nn.Module = getattr(transformers, kind)(config)
    return model.eval()


def _config(kind: str, **sizes: Any) -> Any:
    import transformers

    return getattr(transformers, f"{kind}Config")(**sizes)


def _ids(length: int = 6) -> torch.Tensor:
    return torch.arange(3, 3 + 2 * length).reshape(2, length)


def _text(kind: str, head: str = "Model", **sizes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """An encoder or decoder of tokens; one of the two sentences is padded."""
    config = _config(kind, **{**SIZES, **TOKENS, **sizes})
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[1, 4:] = 0
    return _made(kind + head, config), {"input_ids": _ids(), "attention_mask": mask}


def _picture(kind: str, head: str = "Model", **sizes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model of pictures."""
    return _made(kind + head, _config(kind, **sizes)), {"pixel_values": torch.randn(1, 3, 32, 32)}


def _t5() -> tuple[nn.Module, dict[str, Any]]:
    config = _config(
        "T5", vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **TOKENS
    )
    return _made("T5Model", config), {"input_ids": _ids(), "decoder_input_ids": _ids(3)}


def _bart() -> tuple[nn.Module, dict[str, Any]]:
    config = _config("Bart", vocab_size=64, max_position_embeddings=32, **ENCODER_DECODER, **TOKENS)
    return _made("BartModel", config), {"input_ids": _ids(), "decoder_input_ids": _ids(3)}


def _whisper() -> tuple[nn.Module, dict[str, Any]]:
    config = _config(
        "Whisper",
        vocab_size=64,
        num_mel_bins=8,
        max_source_positions=10,
        max_target_positions=16,
        decoder_start_token_id=1,
        begin_suppress_tokens=None,
        **ENCODER_DECODER,
        **TOKENS,
    )
    features = torch.randn(2, 8, 20)
    return _made("WhisperModel", config), {
        "input_features": features,
        "decoder_input_ids": _ids(3),
    }


def _clip() -> tuple[nn.Module, dict[str, Any]]:
    text = {**SIZES, **TOKENS, "eos_token_id": 63}
    vision = {**SIZES, **PICTURE}
    config = _config("CLIP", text_config=text, vision_config=vision, projection_dim=16)
    return _made("CLIPModel", config), {
        "input_ids": _ids(),
        "pixel_values": torch.randn(2, 3, 32, 32),
    }


def _detr() -> tuple[nn.Module, dict[str, Any]]:
    backbone = _config(
        "ResNet",
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        layer_type="basic",
        out_features=["stage2"],
    )
    sizes = {**ENCODER_DECODER, "num_queries": 5, "num_labels": 3}
    config = _config("Detr", backbone_config=backbone, use_timm_backbone=False, **sizes)
    mask = torch.ones(1, 48, 64, dtype=torch.long)
    mask[:, :, 56:] = 0
    return _made("DetrForObjectDetection", config), {
        "pixel_values": torch.randn(1, 3, 48, 64),
        "pixel_mask": mask,
    }


def _sam() -> tuple[nn.Module, dict[str, Any]]:
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    picture = {"image_size": 64, "patch_size": 8}
    config = _config(
        "Sam",
        vision_config={
            **layers,
            **picture,
            "output_channels": 16,
            "window_size": 3,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 32,
        },
        prompt_encoder_config={"hidden_size": 16, "mask_input_channels": 4, **picture},
        mask_decoder_config={**layers, "mlp_dim": 32, "iou_head_hidden_dim": 16},
    )
    return _made("SamModel", config), {
        "pixel_values": torch.randn(1, 3, 64, 64),
        "input_points": torch.tensor([[[[20.0, 30.0], [40.0, 10.0]]]]),
        "input_labels": torch.tensor([[[1, 0]]]),
    }


def _wav2vec2() -> tuple[nn.Module, dict[str, Any]]:
    config = _config(
        "Wav2Vec2",
        **SIZES,
        conv_dim=[16, 16],
        conv_kernel=[10, 3],
        conv_stride=[5, 2],
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_length=2,
        mask_time_min_masks=1,
    )
    mask = torch.ones(2, 400, dtype=torch.long)
    mask[1, 300:] = 0
    return _made("Wav2Vec2Model", config), {
        "input_values": torch.randn(2, 400),
        "attention_mask": mask,
    }


_VIT = {**SIZES, **PICTURE}
CONFIGS: dict[str, Build] = {
    "bart": _bart,
    "bert": partial(_text, "Bert"),
    "bloom": partial(_text, "Bloom", n_layer=2, n_head=2),
    "clip": _clip,
    "convnext": partial(
        _picture,
        "ConvNext",
        "ForImageClassification",
        hidden_sizes=[8, 16],
        depths=[2, 2],
        num_stages=2,
    ),
    "deit": partial(_picture, "DeiT", **_VIT),
    "detr": _detr,
    "dinov2": partial(_picture, "Dinov2", **_VIT),
    "distilbert": partial(_text, "DistilBert", dim=16, hidden_dim=32, n_layers=2, n_heads=2),
    "gemma": partial(_text, "Gemma", "ForCausalLM", **GROUPED),
    "gpt2": partial(_text, "GPT2", "LMHeadModel", n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "llama": partial(_text, "Llama", "ForCausalLM", **GROUPED),
    "mamba": partial(_text, "Mamba", state_size=4),
    "mistral": partial(_text, "Mistral", sliding_window=4, **GROUPED),
    "mixtral": partial(_text, "Mixtral", num_local_experts=3, num_experts_per_tok=2, **GROUPED),
    "opt": partial(_text, "OPT", ffn_dim=32, word_embed_proj_dim=16),
    "qwen2": partial(_text, "Qwen2", **GROUPED),
    "roberta": partial(_text, "Roberta", "ForSequenceClassification"),
    "sam": _sam,
    "segformer": partial(
        _picture,
        "Segformer",
        "ForSemanticSegmentation",
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[2, 1],
        hidden_sizes=[8, 16],
        patch_sizes=[7, 3],
        strides=[4, 2],
        num_attention_heads=[1, 2],
        mlp_ratios=[2, 2],
        decoder_hidden_size=16,
    ),
    "swin": partial(
        _picture,
        "Swin",
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[1, 2],
        window_size=3,
    ),
    "t5": _t5,
    "vit": partial(_picture, "ViT", "ForImageClassification", **_VIT),
    "wav2vec2": _wav2vec2,
    "whisper": _whisper,
}
