"""SFT and RL of discrete-diffusion Vision-Language-Action policies on PyTorch Lightning."""

__version__ = "0.1.0"
