"""Deprecated: see `sampling` and `networks`."""

from .deprecation import moved

__getattr__ = moved(
    __name__,
    {
        "CIRCULAR_SHARE": "sampling.CIRCULAR_SHARE",
        "begins_in_the_middle": "sampling.img2img_scheduler",
        "draw_noise": "sampling.draw_noise",
        "first_noise": "sampling.scale_static_noise",
        "first_step": "sampling.first_step",
        "perturbed_attention": "networks.perturbed_attention",
    },
)
