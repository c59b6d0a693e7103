"""Tiny random models of riffling's and of Riffusion v1's kind, made in a moment and laid out on disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from riffusion_lab.hashing import weights_hash

SETTINGS = {
    "num_inference_steps": 3,
    "guidance_scale": 4.0,
    "loop": True,
    "vocabulary": ["piano", "church bells", "slow", "techno", "jazz"],
    "tempi_bpm": [94, 105, 141],
}


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with letters for words: one token each."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))]  # CLIP's 256 byte symbols
    symbols = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    return CLIPTokenizer(vocab={symbol: k for k, symbol in enumerate(symbols)}, merges=[], model_max_length=77)


def tiny_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return CLIPTextModel(config).eval()


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    ).eval()


def state(pipe: StableDiffusionPipeline) -> dict:
    """Everything a call could leave behind in a pipeline."""
    layers = [layer for part in (pipe.unet, pipe.vae, pipe.text_encoder) for layer in part.modules()]
    return {
        "attributes": {name: id(value) for name, value in vars(pipe).items()},
        "config": dict(pipe.config),
        "scheduler": {name: repr(value) for name, value in vars(pipe.scheduler).items()},
        "layers": [sorted(name for name in vars(layer)) for layer in layers],
        "processors": pipe.unet.attn_processors,
        "modes": [layer.training for layer in layers],
        "weights": weights_hash(pipe),
    }


def tiny_pipeline(seed: int = 0) -> StableDiffusionPipeline:
    """A random pipeline with the shapes of riffling's pictures and latents."""
    torch.manual_seed(seed)
    tokenizer = tiny_tokenizer()
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        num_encoder_blocks=(0, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 0),
    ).eval()
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
        clip_sample=False,
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=tiny_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=tiny_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_tiny_pipeline(folder: Path, *, settings: dict | None = SETTINGS, seed: int = 0) -> Path:
    """Lay a tiny pipeline out as riffling is: diffusers' layout and riffusion_lab.json."""
    tiny_pipeline(seed).save_pretrained(folder)
    config = folder / "vae" / "config.json"
    content = json.loads(config.read_text())
    content.pop("block_out_channels")  # diffusers writes it, and warns when it reads it
    config.write_text(json.dumps(content))
    if settings is not None:
        (folder / "riffusion_lab.json").write_text(json.dumps(settings))
    return folder


def save_stable_diffusion(folder: Path, *, is_narrow: bool = False) -> Path:
    """Random weights with the shapes of Stable Diffusion 1.5, in half precision, laid out as Riffusion v1 is.

    A narrow one has an eighth of the channels, and one layer of the text encoder: 120 MB instead of 2 GB.
    Its folders for safety checker and feature extractor are there, but hold nothing that could be loaded.
    """
    tokenizer = tiny_tokenizer()
    share = 8 if is_narrow else 1
    with torch.device("meta"):  # shapes only: drawing a billion weights by the usual rules takes a minute
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=768,
            attention_head_dim=8,
            block_out_channels=[n_channels // share for n_channels in (320, 640, 1280, 1280)],
            norm_num_groups=32 // share,
        )
        vae = AutoencoderKL(
            block_out_channels=[n_channels // share for n_channels in (128, 256, 512, 512)],
            norm_num_groups=32 // share,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=512,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=1 if is_narrow else 12,
                num_attention_heads=12,
                vocab_size=49408,
            )
        )
    for part in (unet, vae, text_encoder):
        part.half().to_empty(device="cpu")
        for name, weight in part.named_parameters():
            torch.nn.init.constant_(weight, 0.0 if name.endswith("bias") else 1 / weight[0].numel())
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer}.items():
        part.save_pretrained(folder / name)
    scheduler.save_pretrained(folder / "scheduler")
    for name in ("safety_checker", "feature_extractor"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{}")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.9.0",
        "feature_extractor": ["transformers", "CLIPFeatureExtractor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
