"""A pipeline's weights under the names in which Stable Diffusion 1.x was first published: all in one file.

The way back of what diffusers does in ``from_single_file``. The names are those of the modules in
https://github.com/CompVis/stable-diffusion (ldm/modules/diffusionmodules/openaimodel.py and model.py).
"""

from __future__ import annotations

from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def original_weights(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """All weights of a pipeline by their original names."""
    weights = {TEXT + name: weight for name, weight in pipe.text_encoder.state_dict().items()}
    for start, part, modules in ((UNET, pipe.unet, unet_modules(pipe.unet)), (VAE, pipe.vae, vae_modules(pipe.vae))):
        for new, old in modules.items():
            for name, weight in part.get_submodule(new).state_dict().items():
                is_attention = start == VAE and ".attn_" in old and ".norm" not in old and name == "weight"
                weights[f"{start}{old}.{name}"] = weight[..., None, None] if is_attention else weight
    return {name: weight.contiguous() for name, weight in weights.items()}


def resnet_modules(new: str, old: str, resnet: nn.Module) -> dict[str, str]:
    return {f"{new}.{a}": f"{old}.{b}" for a, b in RESNET.items() if getattr(resnet, a, None) is not None}


def unet_modules(unet: nn.Module) -> dict[str, str]:
    """Original names of the U-Net's modules by diffusers' names."""
    modules = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    modules |= {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2"}
    modules |= resnet_modules("mid_block.resnets.0", "middle_block.0", unet.mid_block.resnets[0])
    modules |= {"mid_block.attentions.0": "middle_block.1"}
    modules |= resnet_modules("mid_block.resnets.1", "middle_block.2", unet.mid_block.resnets[1])
    number = 1
    for i, block in enumerate(unet.down_blocks):
        for j, resnet in enumerate(block.resnets):
            modules |= resnet_modules(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0", resnet)
            if hasattr(block, "attentions"):
                modules[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        if block.downsamplers:
            modules[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
            number += 1
    number = 0
    for i, block in enumerate(unet.up_blocks):
        has_attention = hasattr(block, "attentions")
        for j, resnet in enumerate(block.resnets):
            modules |= resnet_modules(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0", resnet)
            if has_attention:
                modules[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            number += 1
        if block.upsamplers:
            modules[f"up_blocks.{i}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{1 + has_attention}.conv"
    return modules


def vae_modules(vae: nn.Module) -> dict[str, str]:
    """Original names of the autoencoder's modules by diffusers' names."""
    modules = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for side, blocks, step in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        part = getattr(vae, side)
        modules |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        modules[f"{side}.conv_norm_out"] = f"{side}.norm_out"
        for j in range(2):
            modules |= vae_resnet(
                f"{side}.mid_block.resnets.{j}", f"{side}.mid.block_{j + 1}", part.mid_block.resnets[j]
            )
        for new, old in VAE_ATTENTION.items():
            modules[f"{side}.mid_block.attentions.0.{new}"] = f"{side}.mid.attn_1.{old}"
        levels = getattr(part, f"{blocks}_blocks")
        for i, block in enumerate(levels):
            new, level = f"{side}.{blocks}_blocks.{i}", i if side == "encoder" else len(levels) - 1 - i
            for j, resnet in enumerate(block.resnets):
                modules |= vae_resnet(f"{new}.resnets.{j}", f"{side}.{blocks}.{level}.block.{j}", resnet)
            if getattr(block, f"{step}rs"):
                modules[f"{new}.{step}rs.0.conv"] = f"{side}.{blocks}.{level}.{step}.conv"
    return modules


def vae_resnet(new: str, old: str, resnet: nn.Module) -> dict[str, str]:
    modules = {f"{new}.{name}": f"{old}.{name}" for name in ("norm1", "conv1", "norm2", "conv2")}
    if resnet.conv_shortcut is not None:
        modules[f"{new}.conv_shortcut"] = f"{old}.nin_shortcut"
    return modules
